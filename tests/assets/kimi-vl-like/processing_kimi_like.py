"""Puts as many placeholders as a picture has merged patches where a text has one."""

from transformers import BatchFeature, ProcessorMixin


class KimiLikeProcessor(ProcessorMixin):
    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, merged_patches=9, **kwargs):
        self.image_token = "<image>"
        self.merged_patches = merged_patches
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, return_tensors=None, **kwargs):
        pixels = self.image_processor(images=images, return_tensors=return_tensors) if images else {}
        texts = [text] if isinstance(text, str) else text
        if images:
            texts = [each.replace(self.image_token, self.image_token * self.merged_patches) for each in texts]
        return BatchFeature({**self.tokenizer(texts, return_tensors=return_tensors, **kwargs), **pixels})
