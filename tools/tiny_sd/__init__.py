"""Everything that makes and measures the tiny Stable Diffusion in ``assets/tiny-sd``."""
