import numpy as np
import pytest
from tiny_spaces import TINY, all_rows

from search_spaces.cost import Cost, cost
from search_spaces.errors import UserError
from search_spaces.sampling import uniform_rows
from search_spaces.spaces import SPACES
from search_spaces.stage_tables import CanonicalTables, StageTables
from search_spaces.tables import SpaceTables


@pytest.mark.parametrize("name", SPACES)
def test_stage_tables_equal_space_tables(name: str) -> None:
    space = SPACES[name]()
    tables = SpaceTables(space, num_classes=17, in_channels=3)
    rows = uniform_rows(space, 3000, np.random.default_rng(0))
    expected = tables.cost(rows)._asdict()
    for quantity in Cost._fields:
        found = StageTables(tables, quantity)(rows)
        assert found.dtype == np.int64 and (found == expected[quantity]).all()
    for row in rows[:3]:
        assert StageTables(tables)(row[None])[0] == cost(space.decode(row), num_classes=17).flops
    assert (CanonicalTables(space)(rows) == space.canonical(rows)).all()


@pytest.mark.parametrize("name", TINY)
def test_every_row_of_tiny_spaces(name: str) -> None:
    space = TINY[name]()
    rows = all_rows(space)
    tables = SpaceTables(space, num_classes=10, in_channels=1)
    for quantity in Cost._fields:
        assert (StageTables(tables, quantity)(rows) == tables.cost(rows)._asdict()[quantity]).all()
    assert (CanonicalTables(space)(rows) == space.canonical(rows)).all()


def test_rows_are_checked_and_left_alone() -> None:
    space = SPACES["digits"]()
    tables = SpaceTables(space, num_classes=10, in_channels=1)
    flops, canonical = StageTables(tables), CanonicalTables(space)
    rows = uniform_rows(space, 50, np.random.default_rng(1))
    before = rows.copy()
    wide = np.concatenate([rows, rows], axis=1)
    assert (flops(wide[:, : len(space)]) == flops(rows)).all()  # a view with gaps
    assert (flops(rows.astype(np.int32)) == flops(rows)).all() and flops(rows[:0]).shape == (0,)
    canonical(rows)
    assert (rows == before).all()
    for wrong in (-1, int(space.option_counts[2])):
        rows[7, 2] = wrong
        for function in (flops, canonical):
            with pytest.raises(UserError, match=f"row 7: option {wrong} of {space.variables[2].name}"):
                function(rows)
    with pytest.raises(UserError, match="columns"):
        flops(before[:, 1:])
    with pytest.raises(UserError, match="did you mean 'flops'"):
        StageTables(tables, "flop")
