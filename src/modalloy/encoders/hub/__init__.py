"""Pretrained models in the layout of the Hugging Face hub, as encoders; each module one way of building them."""
