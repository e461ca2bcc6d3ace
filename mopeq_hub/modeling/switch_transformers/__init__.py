"""Switch Transformers in a form whose experts may be quantized."""
