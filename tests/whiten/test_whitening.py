"""Whitening against scikit-learn, against cirtorch's own steps, and its file against broken and hostile ones."""

import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS
from sklearn.decomposition import PCA

from dim.errors import UserError
from dim.model import whitening as whitenings
from dim.model.whitening import Whitening
from dim.whiten.fit import Moments, fit_learned, fit_pca, moments_of

LEARNED_ON = {"manifest": "photos.csv", "split": "train"}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """400 descriptors of 32 values whose variances fall from 1 to 1/100."""
    random = np.random.default_rng(0)
    return unit(random.normal(size=(400, 32)) * np.linspace(1, 0.1, 32) + random.normal(size=32)).astype(np.float32)


def in_blocks(rows: np.ndarray, blocks: int) -> Moments:
    parts = [moments_of(block) for block in np.array_split(rows, blocks)]
    np.random.default_rng(blocks).shuffle(parts)
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total


def test_moments_are_numpys(rows):
    total = in_blocks(rows, 50)
    np.testing.assert_allclose(total.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(total.scatter / 399, np.cov(rows.T.astype(np.float64)), rtol=1e-9, atol=1e-15)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=6), offset=st.floats(-1e4, 1e4))
def test_moments_do_not_depend_on_the_blocks(cuts, offset):
    rows = np.random.default_rng(1).normal(size=(40, 3)) + offset
    blocks = np.split(rows, sorted(cuts))
    total = moments_of(blocks[0])
    for block in blocks[1:]:
        total = moments_of(block).merge(total)
    whole = moments_of(rows)
    assert total.count == 40
    np.testing.assert_allclose(total.mean, whole.mean, rtol=1e-9)
    np.testing.assert_allclose(total.scatter, whole.scatter, rtol=1e-6, atol=1e-6)


def test_one_block_and_fifty_give_the_same_whitening(rows):
    one, fifty = (fit_pca(in_blocks(rows, blocks), 16, LEARNED_ON) for blocks in (1, 50))
    np.testing.assert_allclose(fifty.projection, one.projection, atol=1e-6)
    np.testing.assert_allclose(fifty.apply(rows), one.apply(rows), atol=1e-6)


@pytest.mark.parametrize("dimension", [8, 32])
def test_pca_is_scikit_learns(rows, dimension):
    for power, whiten in ((0.0, False), (0.5, True)):
        pca = PCA(dimension, whiten=whiten, svd_solver="full").fit(rows.astype(np.float64))
        found = fit_pca(in_blocks(rows, 7), dimension, LEARNED_ON, power=power)
        expected = unit(pca.transform(rows.astype(np.float64)))
        signs = np.sign(np.sum(found.apply(rows) * expected, axis=0))
        np.testing.assert_allclose(found.apply(rows), expected * signs, atol=1e-5)
        np.testing.assert_allclose(found.eigenvalues[:dimension], pca.explained_variance_, rtol=1e-6)
        assert found.explained_variance == pytest.approx(pca.explained_variance_ratio_.sum())


def test_power_divides_by_the_eigenvalues_clipped_at_a_thousandth_of_the_largest():
    random = np.random.default_rng(3)
    rows = random.normal(size=(500, 4)) * [1, 0.5, 1e-3, 1e-6]
    turned, powered = (fit_pca(moments_of(rows), 4, LEARNED_ON, power=power) for power in (0.0, 0.25))
    clipped = np.maximum(turned.eigenvalues, 1e-3 * turned.eigenvalues[0])
    np.testing.assert_allclose(powered.projection, clipped[:, None] ** -0.25 * turned.projection)
    assert clipped[2] == clipped[3] > turned.eigenvalues[2]


def test_largest_entry_of_each_direction_is_positive(rows):
    for flipped in (rows, -rows):
        projection = fit_pca(moments_of(flipped), None, LEARNED_ON).projection
        assert (projection[np.arange(32), np.abs(projection).argmax(axis=1)] > 0).all()


def test_dense_layer_is_the_same_map(rows):
    found = fit_pca(moments_of(rows), 8, LEARNED_ON)
    kernel, bias = found.as_dense()
    assert (kernel.shape, kernel.dtype, bias.shape, bias.dtype) == ((32, 8), np.float32, (8,), np.float32)
    expected = unit((rows.astype(np.float64) - found.mean) @ found.projection.T)
    np.testing.assert_allclose(found.apply(rows), expected, atol=1e-5)
    np.testing.assert_allclose(unit(rows @ kernel + bias), expected, atol=1e-5)
    assert found.apply(rows).dtype == np.float32
    assert np.isfinite(found.apply(found.mean[None])).all()


def cirtorch(rows: np.ndarray, queries: np.ndarray, matches: np.ndarray, everything: np.ndarray):
    """`whitenlearn` of cnnimageretrieval-pytorch, its steps in its order."""
    mean = rows[queries].mean(axis=0)
    differences = rows[queries] - rows[matches]
    inverse = np.linalg.inv(np.linalg.cholesky(differences.T @ differences / len(differences)))
    rotated = (everything - mean) @ inverse.T
    eigenvalues, vectors = np.linalg.eigh(rotated.T @ rotated)
    return mean, vectors[:, np.argsort(eigenvalues)[::-1]].T @ inverse


def of_differences(differences: np.ndarray) -> Moments:
    return Moments(len(differences), np.zeros(differences.shape[1]), differences.T @ differences)


def test_learned_whitening_without_shrinkage_is_cirtorchs_over_all_pairs():
    random = np.random.default_rng(5)
    centres = random.normal(size=(30, 6)) * 2
    rows = np.repeat(centres, 4, axis=0) + random.normal(size=(120, 6)) * [1, 2, 0.5, 1, 1, 3]
    pairs = np.array([(i, j) for i in range(120) for j in range(120) if i != j and i // 4 == j // 4])
    mean, projection = cirtorch(rows, pairs[:, 0], pairs[:, 1], rows)
    differences = rows[pairs[:, 0]] - rows[pairs[:, 1]]
    found = fit_learned(moments_of(rows), of_differences(differences), None, LEARNED_ON, shrinkage=0.0)
    np.testing.assert_allclose(found.mean, mean)
    signs = np.sign(np.sum(found.projection * projection, axis=1, keepdims=True))
    np.testing.assert_allclose(found.projection, projection * signs, rtol=1e-8, atol=1e-10)
    whitened = differences @ found.projection.T
    np.testing.assert_allclose(whitened.T @ whitened / len(pairs), np.eye(6), atol=1e-9)


@pytest.mark.parametrize("count", [5, 50, 500])
def test_shrinkage_is_scikit_learns(count):
    differences = np.random.default_rng(count).normal(size=(count, 8)) * np.arange(1, 9)
    found = fit_learned(moments_of(np.eye(8)), of_differences(differences), 4, LEARNED_ON)
    assert found.learned_on["shrinkage"] == pytest.approx(OAS(assume_centered=True).fit(differences).shrinkage_)


def test_full_shrinkage_whitens_nothing(rows):
    differences = of_differences(np.random.default_rng(4).normal(size=(50, 32)))
    turned = fit_pca(moments_of(rows), 8, LEARNED_ON, power=0.0)
    found = fit_learned(moments_of(rows), differences, 8, LEARNED_ON, shrinkage=1.0)
    np.testing.assert_allclose(found.apply(rows), turned.apply(rows), atol=1e-5)


@pytest.mark.parametrize("shrinkage", [None, 0.0])
def test_learned_whitening_with_fewer_pairs_than_dimensions(shrinkage):
    random = np.random.default_rng(6)
    rows, differences = random.normal(size=(40, 8)), random.normal(size=(3, 8))
    found = fit_learned(moments_of(rows), of_differences(differences), 4, LEARNED_ON, shrinkage=shrinkage)
    assert np.isfinite(found.projection).all()


@pytest.mark.parametrize("dimension", [0, -1, 33, 400])
def test_impossible_dimension(rows, dimension):
    with pytest.raises(UserError, match=rf"allow a whitening to 1 to 32 dimensions.* not to {dimension}$"):
        fit_pca(moments_of(rows), dimension, LEARNED_ON)


def test_fewer_rows_than_values_allow_rows_less_one_dimensions(rows):
    assert fit_pca(moments_of(rows[:5]), None, LEARNED_ON).projection.shape == (4, 32)
    with pytest.raises(UserError, match="5 descriptors of 32 values allow a whitening to 1 to 4 dimensions"):
        fit_pca(moments_of(rows[:5]), 5, LEARNED_ON)
    with pytest.raises(UserError, match="1 descriptors"):
        fit_pca(moments_of(rows[:1]), None, LEARNED_ON)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_rows_that_are_equal_or_not_finite(value):
    with pytest.raises(UserError, match="all equal or not finite"):
        fit_pca(moments_of(np.full((9, 3), value)), None, LEARNED_ON)
    with pytest.raises(UserError, match="the descriptors of each label are all equal or not finite"):
        differences = np.full((4, 3), 0.0 if value == 0.5 else value)
        fit_learned(moments_of(np.eye(3)), of_differences(differences), None, LEARNED_ON)


def test_descriptors_of_another_dimension(rows):
    with pytest.raises(UserError, match="for descriptors of 32 values, not 16"):
        fit_pca(moments_of(rows), 8, LEARNED_ON).apply(rows[:, :16])


@pytest.fixture
def saved(rows, tmp_path):
    found = fit_pca(moments_of(rows), 8, LEARNED_ON, {"id": "abc", "pooling": "gem"})
    path = str(tmp_path / "whitening.npz")
    found.save(path)
    return found, path


def test_file_holds_the_whole_whitening_without_pickle(saved):
    found, path = saved
    again = whitenings.load(path)
    for name in ("mean", "projection", "eigenvalues"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert (again.power, again.kind, again.learned_on, again.embedding) == (
        0.25,
        "pca",
        {"manifest": "photos.csv", "split": "train", "rows": 400},
        {"id": "abc", "pooling": "gem"},
    )
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) == {"mean", "projection", "eigenvalues", "power", "kind", "learned_on", "embedding"}


def test_equal_whitenings_are_equal_bytes(saved, tmp_path):
    whitenings.load(saved[1]).save(str(tmp_path / "again.npz"))
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "whitening.npz").read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.npz", "no whitening file '.*none.npz'; make it with whiten.py"),
        ("folder", "cannot read the whitening '.*folder': .* is not a regular file"),
        ("file/none.npz", "whitening.* '.*file/none.npz'"),
    ],
)
def test_missing_file(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        whitenings.load(str(tmp_path / name))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


CHANGES = {
    "no mean": {"mean": None},
    "pickle": {"mean": np.array([Bomb()], dtype=object)},
    "text": {"mean": np.array(["a"] * 32)},
    "complex": {"mean": np.zeros(32, complex)},
    "not finite": {"mean": np.full(32, np.nan)},
    "other shape": {"mean": np.zeros(31)},
    "flat projection": {"projection": np.zeros(32)},
    "no direction": {"projection": np.zeros((0, 32))},
    "too many directions": {"projection": np.zeros((33, 32))},
    "power of two": {"power": np.zeros(2)},
    "power is not finite": {"power": np.inf},
    "unknown kind": {"kind": "magic"},
    "no JSON": {"learned_on": "{"},
    "JSON of another type": {"learned_on": "[]"},
    "embedding of another type": {"embedding": "3"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_file_with_wrong_content(saved, change):
    path = saved[1]
    with np.load(path) as arrays:
        content = {name: value for name, value in (dict(arrays) | CHANGES[change]).items() if value is not None}
    np.savez(path, **content)
    with pytest.raises(UserError, match=r"is not a whitening file \(.*make it with whiten\.py") as caught:
        whitenings.load(path)
    assert "\n" not in str(caught.value)


def test_compressed_file(saved):
    path = saved[1]
    with np.load(path) as arrays:
        np.savez_compressed(path, **dict(arrays))
    with pytest.raises(UserError, match="it is compressed"):
        whitenings.load(path)


def test_array_that_claims_to_be_huge(saved):
    path = saved[1]
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (2**50, 2**10)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mean.npy", stream.getvalue())
    with pytest.raises(UserError, match="is not a whitening file"):
        whitenings.load(path)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 5000), flips=st.lists(st.tuples(st.integers(0, 4999), st.integers(1, 255)), max_size=4))
def test_any_damage_is_either_found_or_harmless(tmp_path_factory, cut, flips):
    folder = tmp_path_factory.mktemp("damage")
    random = np.random.default_rng(0).normal(size=(20, 4))
    path = folder / "whitening.npz"
    fit_pca(moments_of(random), 2, LEARNED_ON).save(str(path))
    content = bytearray(path.read_bytes())
    for position, change in flips:
        content[position % len(content)] ^= change
    path.write_bytes(content[: max(len(content) - cut % 7, 0)] if cut % 2 else content)
    try:
        assert isinstance(whitenings.load(str(path)), Whitening)
    except UserError as error:
        assert "\n" not in str(error)


def test_needs_neither_keras_nor_ray():
    code = "import sys, dim.model.whitening; print([m for m in ('keras', 'tensorflow', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"
