"""MolmoE: an OLMoE that sees pictures, one of ours (`modeling/molmoe`)."""

from mopeq_hub.families.base import Family

# Dense Molmos have the same model type.
MOLMOE = Family("molmo", marks=(("block_type", "moe"),))
