"""Upgraded models in other libraries.

`pretrained`: load what Hugging Face's save_pretrained wrote.
"""
