"""Mixtral: text alone; the file names an expert's gate, down and up projection w1, w2 and w3."""

from mopeq_hub.families.base import Family

MIXTRAL = Family("mixtral", experts_count="num_local_experts")
