"""What travels between box and judge arrives as it was, or not at all."""

import dataclasses

import numpy
import pytest
import torch

from autograder.inbox import Inbox
from autograder.wire import HEADER, BadFrame, Other, Record, pack, unpack


@dataclasses.dataclass
class Pair:
    chosen: str
    rejected: str


class LyingTensor(torch.Tensor):
    def __eq__(self, other):
        return True


class LyingFloat(float):
    def __repr__(self):
        return "0.5"


def test_plain_data_comes_back_equal():
    tree = {
        "a": [1, 2.5, None, True, "zoë"],
        "b": (1, [2]),
        3: {"x": b"bytes"},
        "inf": float("inf"),
    }
    assert unpack(pack(tree)) == tree


def test_tensors_come_back_with_dtype_and_shape():
    tensors = [
        torch.ones(2, 3),
        torch.tensor(1),
        torch.zeros(0),
        torch.ones(2, dtype=torch.bfloat16),
    ]
    for before, after in zip(tensors, unpack(pack(tensors)), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


def test_parameters_and_numpy_numbers_are_plain():
    parameter = torch.nn.Parameter(torch.ones(1))
    assert unpack(pack([parameter, numpy.float64(0.5), numpy.int64(3)])) == [torch.ones(1), 0.5, 3]


def test_a_dataclass_arrives_as_its_name_and_fields():
    assert unpack(pack(Pair("a", "b"))) == Record("Pair", {"chosen": "a", "rejected": "b"})


@pytest.mark.parametrize(
    "value",
    [LyingFloat(1.0), torch.ones(1).as_subclass(LyingTensor), object(), print, 10**5000],
    ids=["float", "tensor", "object", "function", "huge int"],
)
def test_what_may_lie_arrives_as_other(value):
    assert isinstance(unpack(pack(value)), Other)


def test_what_has_travelled_can_be_sent_on():
    once = unpack(pack([Pair("a", "b"), object()]))
    assert unpack(pack(once)) == once


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"AG01",
        b"XXXX" + bytes(8),
        HEADER.pack(b"AG01", 10, 0) + b"[]",
        HEADER.pack(b"AG01", 2, 0) + b"[]",
        HEADER.pack(b"AG01", 2, 0) + b"{}",
        HEADER.pack(b"AG01", 14, 0) + b'["tensor","0"]',
        HEADER.pack(b"AG01", 12, 0) + b'["int","1e"]',
        HEADER.pack(b"AG01", 10, 0) + b'["int", 1]',
        HEADER.pack(b"AG01", 9, 0) + b'["bool",1]'[:9],
        HEADER.pack(b"AG01", 8, 4) + b'["none"]' + b"blob",
        HEADER.pack(b"AG01", 100_000, 0) + b"[" * 100_000,
        HEADER.pack(b"AG01", 22, 0) + b'["pickle","gASVAAAA"]]',
    ],
)
def test_forged_bytes_end_in_bad_frame(data):
    with pytest.raises(BadFrame):
        unpack(data)


def test_a_stream_is_cut_into_frames_wherever_it_breaks():
    data = pack({"ready": True}) + pack({"end": True})
    inbox = Inbox()
    for byte in data:
        inbox.feed(bytes([byte]))
    assert inbox.frames == [{"ready": True}, {"end": True}]
    assert not inbox.bad


def test_a_frame_that_claims_too_much_is_refused_at_once():
    inbox = Inbox()
    inbox.feed(HEADER.pack(b"AG01", 1 << 30, 0))
    assert inbox.bad
