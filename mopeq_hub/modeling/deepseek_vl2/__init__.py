"""DeepSeek-VL2 as a transformers model; these files travel in every publication of one."""
