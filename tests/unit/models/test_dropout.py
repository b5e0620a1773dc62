import numpy as np
import torch

from chuxin.models.dropout import Dropout, mix32, token_keys


def dropped(keys_T: torch.Tensor, probability: float, place: int, width: int = 64) -> torch.Tensor:
    return Dropout(probability, keys_T)(torch.ones(len(keys_T), width), place) == 0


def test_mix32_is_murmur_s_finaliser() -> None:
    def finalise(value: int) -> int:
        value = (value ^ value >> 16) * 0x85EBCA6B & 0xFFFFFFFF
        value = (value ^ value >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        return value ^ value >> 16

    values = np.random.default_rng(0).integers(0, 2**32, 1000)
    found = mix32(torch.from_numpy(values.astype(np.uint32).view(np.int32))).numpy().view(np.uint32)
    assert found.tolist() == [finalise(int(value)) for value in values]


def test_the_share_dropped_and_the_mean() -> None:
    keys_T = token_keys(torch.arange(40, dtype=torch.int32), torch.arange(50).repeat(40), torch.full((40,), 50))
    assert len(keys_T.unique()) == 2000
    for probability in (0.1, 0.5, 0.9):
        states_TH = Dropout(probability, keys_T)(torch.ones(2000, 128), 3)
        share = (states_TH == 0).float().mean().item()
        deviation = (probability * (1 - probability) / states_TH.numel()) ** 0.5
        assert abs(share - probability) < 4 * deviation
        torch.testing.assert_close(states_TH.max().item(), 1 / (1 - probability))
    assert not dropped(keys_T, 0.0, 3).any()


def test_draws_of_tokens_channels_and_places_are_independent() -> None:
    keys_T = token_keys(torch.arange(8, dtype=torch.int32), torch.arange(256).repeat(8), torch.full((8,), 256))
    first, other_place = (dropped(keys_T, 0.5, place).double() - 0.5 for place in (0, 1))
    pairs = {"place": (first, other_place), "token": (first[1:], first[:-1]),
             "text": (first[256:], first[:-256]), "channel": (first[:, 1:], first[:, :-1])}  # fmt: skip
    for name, (one, other) in pairs.items():
        assert abs((one * other).mean() / 0.25) < 4 / one.numel() ** 0.5, name
    for axis in (0, 1):  # no token and no channel falls more often than chance has it
        means = first.mean(axis)
        assert (means.abs() < 5 * 0.5 / first.shape[axis] ** 0.5).all()


def test_the_gradient_is_zero_where_it_dropped() -> None:
    states_TH = torch.ones(20, 64, requires_grad=True)
    keys_T = torch.arange(20, dtype=torch.int32)
    out_TH = Dropout(0.3, keys_T)(states_TH, 1)
    out_TH.sum().backward()
    assert torch.equal(states_TH.grad, out_TH.detach())


def test_the_dtype_stays() -> None:
    keys_T = torch.arange(5, dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.float32):
        assert Dropout(0.3, keys_T)(torch.ones(5, 8, dtype=dtype), 0).dtype == dtype
