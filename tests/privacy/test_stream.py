"""Streams: stable bytes, independence of labels, and the distributions they promise."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from transom.errors import MisconfiguredError
from transom.privacy.stream import Stream, step_label

SECRET = bytes(range(32))


def test_known_answer() -> None:
    """HKDF and CTR written out by hand with the standard library and the cipher itself."""
    import hmac

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    extracted = hmac.digest(bytes(32), SECRET, "sha256")
    key = hmac.digest(extracted, b"transom/obfuscation/1/space/B" + b"\x01", "sha256")
    block = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 - CTR by its definition
    expected = b"".join(block.update(i.to_bytes(16, "big")) for i in range(3))
    assert Stream(SECRET, "space/B").bytes(48) == expected


def test_bytes_are_those_of_earlier_versions() -> None:
    assert Stream(SECRET, "tokens/tau").permutation(8).tolist() == [4, 2, 6, 5, 7, 3, 1, 0]


def test_a_stream_continues() -> None:
    parts, whole = Stream(SECRET, "a"), Stream(SECRET, "a")
    assert parts.bytes(5) + parts.bytes(11) == whole.bytes(16)


@pytest.mark.parametrize(("secret", "label"), [(SECRET, "b"), (bytes(32), "a")])
def test_another_label_or_secret_is_independent(secret: bytes, label: str) -> None:
    one, other = Stream(SECRET, "a").normal(20_000), Stream(secret, label).normal(20_000)
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / 20_000**0.5


@pytest.mark.parametrize("kind", ["normal", "normal32"])
def test_normals_are_normal(kind: str) -> None:
    sample = getattr(Stream(SECRET, kind), kind)((100, 501)).ravel().astype(np.float64)
    assert stats.kstest(sample, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(sample[:25_000], sample[-25_000:])[0, 1]) < 5 / 25_000**0.5
    assert np.isfinite(sample).all()


def test_uniform_signs_and_odd_sizes() -> None:
    uniform = Stream(SECRET, "u").uniform((3, 5_000))
    assert uniform.shape == (3, 5_000)
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    signs = Stream(SECRET, "s").signs(10_000)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.sum()) < 500
    assert Stream(SECRET, "n").normal(7).shape == (7,)
    assert Stream(SECRET, "n").normal((4, 0)).shape == (4, 0)


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_uniforms_stay_inside_the_interval(word: int) -> None:
    """A quantile function is finite there; the largest word would be rounded up to 1."""

    class Extreme(Stream):
        def words(self, n: int) -> np.ndarray:
            return np.full(n, word, np.uint64)

    assert 0 < Extreme(SECRET, "u").uniform(1)[0] < 1


def test_permutations_are_uniform() -> None:
    stream = Stream(SECRET, "p")
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(2_400):
        order = tuple(stream.permutation(4).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_orthogonal_is_haar() -> None:
    """A column of a Haar matrix is uniform on the sphere: in 3 dimensions each entry is uniform on [-1, 1].
    Without the sign fix, QR's own convention shows."""
    stream = Stream(SECRET, "o")
    sample = np.stack([stream.orthogonal(3) for _ in range(4_000)])
    np.testing.assert_allclose(
        sample @ sample.transpose(0, 2, 1), np.tile(np.eye(3), (4_000, 1, 1)), atol=1e-12
    )
    for row, column in ((0, 0), (1, 1), (2, 2), (2, 0)):
        assert stats.kstest(sample[:, row, column], "uniform", (-1, 2)).pvalue > 1e-3
    assert abs(np.sign(np.linalg.det(sample)).mean()) < 5 / 4_000**0.5


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(MisconfiguredError, match="5 bytes"):
        Stream(b"short", "a")


def test_a_step_has_its_own_noise_and_a_retry_the_same() -> None:
    steps = list(product(["a", "a.1", "1"], [0, 1, 11], [0, 1, 11], ["forward", "backward"]))
    labels = [step_label(*step) for step in steps]
    assert len(set(labels)) == len(steps)
    drawn = {Stream(SECRET, label).normal(4).tobytes() for label in labels}
    again = {Stream(SECRET, step_label(*step)).normal(4).tobytes() for step in steps}
    assert len(drawn) == len(steps)
    assert again == drawn


def test_a_label_says_topic_and_attempt_where_they_are_not_the_usual_ones() -> None:
    assert step_label("a", 1, 2, "forward") == "noise/a/1/2/forward"
    assert step_label("a", 1, 2, "forward", topic="train", attempt=0) == "noise/a/1/2/forward"
    assert step_label("a", 1, 2, "backward", topic="test") == "noise/a/1/2/backward/test/0"
    steps = product(["a", "1"], [0, 11], [0, 11], ["forward", "backward"], ["train", "test", "0"], [0, 1, 11])
    labels = [step_label(*step[:4], topic=step[4], attempt=step[5]) for step in steps]
    assert len(set(labels)) == len(labels) == 144
    for wrong in ({"topic": ""}, {"topic": "a/0"}, {"attempt": -1}):
        with pytest.raises(MisconfiguredError):
            step_label("a", 0, 0, "forward", **wrong)


@pytest.mark.parametrize(
    "step",
    [
        ("", 0, 0, "forward"),
        ("a/1", 0, 0, "forward"),
        ("a\n", 0, 0, "forward"),
        ("a" * 101, 0, 0, "forward"),
        ("a", -1, 0, "forward"),
        ("a", 0, -1, "forward"),
        ("a", 0, 0, "sideways"),
    ],
)
def test_a_step_that_is_none_has_no_label(step: tuple[str, int, int, str]) -> None:
    with pytest.raises(MisconfiguredError):
        step_label(*step)
