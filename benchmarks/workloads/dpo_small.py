"""DPO on 0.86 million weights: 48 tokens a sequence, batches of 32 pairs, float32."""

import dpo
from common import SMALL, run_variant

TITLE = "DPO, 0.86 M parameters, pairs of 48 tokens, batch 32, fp32"
VARIANTS = dpo.variants(SMALL, batch_size=32, steps=20, default_steps=2)
AIMS = dpo.aims(same=1.8, own=2.2, memory=0.8)

if __name__ == "__main__":
    run_variant(VARIANTS)
