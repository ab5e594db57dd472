"""Cases can be repeated, shown and trusted."""

import torch

from autograder.generator import Generator


def test_one_seed_gives_one_case():
    def draw():
        g = Generator(3)
        return [g.integer(0, 99), g.normal(4).tolist(), g.word(), g.mask(3, 4).tolist()]

    assert draw() == draw()


def test_numbers_have_three_decimals():
    drawn = Generator(0).normal(100)
    assert torch.equal(drawn, (drawn * 1000).round() / 1000)
    assert round(Generator(0).uniform(0, 1), 3) == Generator(0).uniform(0, 1)


def test_masks_keep_one_in_each_row():
    assert (Generator(0).mask(200, 5, p=0.01).sum(-1) >= 1).all()


def test_padding_stands_on_one_side():
    left = Generator(0).padding_mask(20, 6, side="left")
    assert (left.diff(dim=-1) >= 0).all()
    assert (left.sum(-1) == 6).any()


def test_probabilities_sum_to_one_with_zeros_among_them():
    p = Generator(0).probabilities(50, 4, zeros=0.4)
    assert torch.allclose(p.sum(-1), torch.ones(50))
    assert (p == 0).any()


def test_the_first_visible_sizes_are_small():
    assert Generator(0, scale=0.25).size(2, 10) <= 3
