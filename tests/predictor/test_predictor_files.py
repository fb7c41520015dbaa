import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mixed_variables import MIXED

from predictor.config import PredictorConfig
from predictor.description import describe, difference, space_of
from predictor.files import MAX_BYTES, load_predictor, save_predictor
from predictor.fit import fit
from predictor.pool import sobol_pool
from predictor.predictor import Predictor, TrainingFacts
from recipes.recipe import RECIPES
from recipes.space import JOINT_SPACES, JointSpace, RecipeSpace, digits_recipes, load_joint
from search_spaces.errors import UserError
from search_spaces.sampling import uniform_rows
from search_spaces.space import PoolHead, SearchSpace
from search_spaces.spaces import SPACES
from search_spaces.variables import Choice, Range, VariableSet

QUICK = PredictorConfig(members=2, epochs=2)


def fitted(variables: VariableSet, **keywords: object) -> Predictor:
    rows = uniform_rows(variables, 12, np.random.default_rng(0))
    return fit(variables, rows, np.linspace(60, 70, 12), seed=0, config=QUICK, num_classes=10, **keywords)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def mixed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictor") / "mixed.npz"
    save_predictor(fitted(MIXED, rounds=5, command="nas nars --seed 0"), path)
    return path


@pytest.mark.parametrize("name", ["mixed", "digits", "digits-joint", "fbnetv3-recipe"])
def test_round_trip_bit_for_bit(name: str, tmp_path: Path) -> None:
    variables = {"mixed": MIXED, "digits": SPACES["digits"]()}.get(name) or load_joint(name)
    made = fitted(variables)
    made.save(tmp_path / "p.npz")
    for loaded in (Predictor.load(tmp_path / "p.npz"), Predictor.load(tmp_path / "p.npz", variables)):
        rows = uniform_rows(variables, 300, np.random.default_rng(1))
        assert (loaded.members(rows) == made.members(rows)).all()
        assert loaded.arrays.keys() == made.arrays.keys()
        assert all((loaded.arrays[key] == made.arrays[key]).all() for key in made.arrays)
        assert (loaded.scaling, loaded.target, loaded.facts) == (made.scaling, made.target, made.facts)
        assert (loaded.shape, loaded.num_classes, loaded.in_channels) == (
            made.shape,
            made.num_classes,
            made.in_channels,
        )
        assert type(loaded.variables) is type(variables)
    first = (tmp_path / "p.npz").read_bytes()
    loaded.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.npz", "p.npz"]


def test_files_are_small_and_plain(tmp_path: Path) -> None:
    """The largest space with the default predictor; anybody can read the arrays without pickle."""
    space = load_joint("fbnetv3")
    rows = sobol_pool(space, 8, {}, seed=0)
    fit(space, rows, np.arange(8.0), seed=0, config=PredictorConfig(epochs=1), num_classes=200).save(tmp_path / "p.npz")
    assert (tmp_path / "p.npz").stat().st_size < 1_000_000
    with np.load(tmp_path / "p.npz", allow_pickle=False) as archive:
        header = json.loads(archive["header"].tobytes())
        assert archive["encoder_weight"].shape[0] == 5
    assert header["schema"] == 1 and header["space"]["name"] == "fbnetv3" and len(header["space"]["variables"]) == 42


def test_facts_are_kept(mixed_file: Path) -> None:
    facts = load_predictor(mixed_file).facts
    assert (facts.rows, facts.rounds, facts.seed, facts.command) == (12, 5, 0, "nas nars --seed 0")
    assert facts.metrics["train_mse"] > 0
    with pytest.raises(UserError, match="tau must be a finite number, got nan"):
        TrainingFacts(metrics={"tau": float("nan")})


# another space ----------------------------------------------------------------------------------------------------------


def changed(index: int, variable: Choice | Range | None) -> VariableSet:
    variables = list(MIXED.variables)
    variables[index : index + 1] = [] if variable is None else [variable]
    return VariableSet(variables)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (changed(1, Range("widths", (8, 12, 20, 32))), "variable 2 is 'width', here 'widths'"),
        (changed(1, Range("width", (8, 12, 24, 32))), r"options of width: \[8, 12, 20, 32\], here \[8, 12, 24, 32\]"),
        (changed(1, Choice("width", (8, 12, 20, 32))), "kind of width: 'range', here 'choice'"),
        (changed(2, Choice("flag", (1, 0))), r"options of flag: \[True, False\], here \[1, 0\]"),
        (changed(5, None), "it has 6 variables, here 5"),
        (load_joint("digits-joint"), "its name is '', here 'digits-joint'"),
    ],
)
def test_a_predictor_of_another_space_is_refused(variables: VariableSet, message: str, mixed_file: Path) -> None:
    with pytest.raises(UserError, match=f"mixed.npz is a predictor of another space: {message}") as caught:
        load_predictor(mixed_file, variables)
    assert "\n" not in str(caught.value)


def test_spaces_of_the_same_variables_are_told_apart() -> None:
    space = load_joint("digits-joint")
    mine = describe(space, 10, 1)
    assert difference(mine, describe(load_joint("digits-joint"), 10, 1)) == ""
    digits = space.architecture
    assert digits is not None
    parts = {"resolution": digits.resolution, "stem": digits.stem, "slots": digits.slots}
    wider = SearchSpace("digits", head=PoolHead(out_channels=256, expansion=3.0), **parts)  # type: ignore[arg-type]
    found = difference(mine, describe(JointSpace("digits-joint", wider, space.recipe), 10, 1))
    assert found.startswith("its smallest and largest networks cost [{'flops': ")
    recipes = digits_recipes()
    for base, factors, key in (
        (recipes.base.replace(epochs=13), {"sgd": 20.0}, "epochs of the base recipe is 12, here 13"),
        (recipes.base, {"sgd": 4.0}, "lr_factors of the base recipe is {'sgd': 20.0}, here {'sgd': 4.0}"),
    ):
        other = JointSpace("digits-joint", digits, RecipeSpace("digits", base, recipes.variables, lr_factors=factors))
        assert difference(mine, describe(other, 10, 1)) == key
    assert "its kind is 'joint', here 'architecture'" in difference({**mine, "name": "digits"}, describe(digits, 10, 1))


@pytest.mark.parametrize("name", JOINT_SPACES)
def test_descriptions_survive_json_and_find_their_space(name: str) -> None:
    description = json.loads(json.dumps(describe(load_joint(name), 10, 3)))
    assert difference(description, describe(load_joint(name), 10, 3)) == ""
    assert space_of(description).variables == load_joint(name).variables  # type: ignore[comparison-overlap]


def test_a_users_space_must_be_given(tmp_path: Path) -> None:
    digits = SPACES["digits"]()
    mine = SearchSpace("mine", resolution=digits.resolution, stem=digits.stem, slots=digits.slots, head=digits.head)
    fitted(mine).save(tmp_path / "p.npz")
    with pytest.raises(UserError, match=r"p.npz: the space 'mine' is none of the toolkit's; give it with the file"):
        load_predictor(tmp_path / "p.npz")
    assert load_predictor(tmp_path / "p.npz", mine).variables is mine
    odd = VariableSet([Choice("a", (frozenset(), "x"))])
    with pytest.raises(UserError, match="of a cannot be written as JSON"):
        describe(odd)
    recipes = RecipeSpace("r", RECIPES["digits"], [Range("dropout", (0.0, 0.1))])
    fitted_recipes = fit(recipes, [[0], [1]], [1.0, 2.0], seed=0, config=QUICK)
    fitted_recipes.save(tmp_path / "r.npz")
    assert (load_predictor(tmp_path / "r.npz", recipes).predict([[0], [1]]) == fitted_recipes.predict([[0], [1]])).all()


# bad files --------------------------------------------------------------------------------------------------------------


def rewritten(source: Path, target: Path, change: dict[str, bytes | None]) -> Path:
    """A copy with some parts replaced, added or (None) left out."""
    with zipfile.ZipFile(source) as archive:
        parts: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**parts, **change}.items():
            if content is not None:
                archive.writestr(name, content)
    return target


def npy(array: np.ndarray, **keywords: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **keywords)  # type: ignore[arg-type]
    return buffer.getvalue()


def header(source: Path, **changes: object) -> bytes:
    with np.load(source) as archive:
        data = json.loads(archive["header"].tobytes())
    for key, value in changes.items():
        place = data
        *path, last = key.split("__")
        for part in path:
            place = place[part]
        place[last] = value
    return npy(np.frombuffer(json.dumps(data).encode(), dtype=np.uint8))


class Hostile:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("code in the file was run",))


def claims(shape: str, dtype: str = "<f4") -> bytes:
    """An array that claims a shape and holds nothing."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_bad_files_are_refused_in_one_line(mixed_file: Path, tmp_path: Path) -> None:
    good, whole = mixed_file, mixed_file.read_bytes()
    with np.load(good) as archive:
        bias = archive["accuracy_bias"]
    swollen = npy(np.zeros(MAX_BYTES // 4 + 10, dtype=np.float32))
    cases: dict[str, tuple[bytes | dict, str]] = {
        "text": (b"not a zip", "is damaged or no predictor"),
        "empty": (b"", "is damaged or no predictor"),
        "half": (whole[: len(whole) // 2], "is damaged or no predictor"),
        "flipped": (whole[:3000] + bytes([whole[3000] ^ 255]) + whole[3001:], "damaged|no predictor|must be"),
        "pickle": (pickle.dumps(Hostile()), "is damaged or no predictor"),
        "objects": (
            {"hidden_bias.npy": npy(np.array([Hostile()], dtype=object), allow_pickle=True)},
            "is not what it claims",
        ),
        "header objects": (
            {"header.npy": npy(np.array([Hostile()], dtype=object), allow_pickle=True)},
            "not what it claims",
        ),
        "huge claim": ({"hidden_bias.npy": claims("(1000000000000,)")}, "hidden_bias is not what it claims"),
        "negative claim": ({"hidden_bias.npy": claims("(-1, -0)")}, "damaged|must be"),
        "foreign": ({"hidden_bias.npy": b"what"}, "hidden_bias is no array"),
        "evil header": ({"hidden_bias.npy": claims("__import__('os').getcwd()")}, "hidden_bias is no array"),
        "bomb": ({"hidden_bias.npy": swollen}, "unpacks to more than"),
        "no header": ({"header.npy": None}, "it has no header"),
        "missing": ({"hidden_bias.npy": None}, "must hold encoder_weight"),
        "more": ({"other.npy": npy(bias)}, "must hold encoder_weight"),
        "double": ({"accuracy_bias.npy": npy(bias.astype(np.float64))}, r"accuracy_bias must be float32 \(2, 1\)"),
        "shape": (
            {"accuracy_bias.npy": npy(bias[:1])},
            r"accuracy_bias must be float32 \(2, 1\), got float32 \(1, 1\)",
        ),
        "nan": ({"accuracy_bias.npy": npy(bias * np.nan)}, "accuracy_bias has numbers that are not finite"),
        "not json": ({"header.npy": npy(np.frombuffer(b"{", dtype=np.uint8))}, "header is not JSON"),
        "deep json": ({"header.npy": npy(np.frombuffer(b"[" * 100_000, dtype=np.uint8))}, "header is not JSON"),
        "nan json": ({"header.npy": npy(np.frombuffer(b"NaN", dtype=np.uint8))}, "header is not JSON"),
        "list": ({"header.npy": npy(np.frombuffer(b"[]", dtype=np.uint8))}, "schema must be 1, got 'list'"),
        "schema": ({"header.npy": header(good, schema=2)}, "schema must be 1, got 2"),
        "key": ({"header.npy": header(good, code="x")}, "unknown key 'code'"),
        "type": ({"header.npy": header(good, target_mean="x")}, "target_mean must be float"),
        "sizes": ({"header.npy": header(good, shape__members=10**9)}, "must be float32"),
        "negative": ({"header.npy": header(good, shape__hidden=-1)}, "must be float32|more"),
        "scaling": ({"header.npy": header(good, scaling__names=["flops"])}, "every statistic needs a mean"),
        "space": ({"header.npy": header(good, space={})}, "the space None is none of the toolkit's"),
        "variables": ({"header.npy": header(good, space__variables=3)}, "it has no list of variables"),
        "variable": ({"header.npy": header(good, space__variables=[{"name": "a"}])}, "no list of options"),
        "options": (
            {"header.npy": header(good, space__variables=[{"name": "a", "options": [[1]]}])},
            "no plain values",
        ),
        "range": (
            {"header.npy": header(good, space__variables=[{"name": "a", "kind": "range", "options": ["x"]}])},
            "no numbers",
        ),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            rewritten(good, path, content)
        with pytest.raises(UserError, match=message) as caught:
            load_predictor(path)
        assert "\n" not in str(caught.value) and name in str(caught.value) and len(str(caught.value)) < 500, name
    digits = tmp_path / "digits.npz"
    fitted(SPACES["digits"]()).save(digits)
    with pytest.raises(UserError, match=r"bad.npz: .*-5"):
        load_predictor(rewritten(digits, tmp_path / "bad.npz", {"header.npy": header(digits, num_classes=-5)}))
    assert rewritten(good, tmp_path / "same.npz", {}).is_file() and load_predictor(tmp_path / "same.npz")


def test_every_truncation_and_every_flipped_byte_is_refused_or_harmless(mixed_file: Path, tmp_path: Path) -> None:
    whole, path = mixed_file.read_bytes(), tmp_path / "p.npz"
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 150):
        for content in (whole[:position], whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]):
            path.write_bytes(content)
            try:
                load_predictor(path)
            except UserError as error:
                assert "\n" not in str(error)


def test_places_that_cannot_be_read_or_written(tmp_path: Path, mixed_file: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nothing.npz: No such file"):
        load_predictor(tmp_path / "nothing.npz")
    with pytest.raises(UserError, match=r"cannot write .*p.npz: No such file"):
        save_predictor(load_predictor(mixed_file), tmp_path / "folder" / "p.npz")
    large = tmp_path / "large.npz"
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match="is larger than"):
        load_predictor(large)
