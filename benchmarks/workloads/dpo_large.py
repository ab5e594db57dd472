"""DPO on 13.8 million weights: 128 tokens a sequence, batches of 8 pairs, float32."""

import dpo
from common import LARGE, run_variant

TITLE = "DPO, 13.8 M parameters, pairs of 128 tokens, batch 8, fp32"
VARIANTS = dpo.variants(LARGE, batch_size=8, steps=4, default_steps=1)
AIMS = dpo.aims(same=2.0, own=2.0, memory=0.75)

if __name__ == "__main__":
    run_variant(VARIANTS)
