"""Any text is either a setting or a mistake that is told; any value survives being written down."""

from __future__ import annotations

import contextlib
import string

from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from wholebatch.config import load
from wholebatch.config.schema import dotted_keys
from wholebatch.config.show import inline
from wholebatch.config.source import parse_override, read_yaml
from wholebatch.core.errors import ConfigError

KEYS = st.sampled_from(dotted_keys()) | st.text(string.ascii_letters + "._-[]", max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12)
    | st.text("${}\\'\": #-[]~.e0+", max_size=8)
)


@settings(deadline=None, max_examples=80)
@given(key=KEYS, value=st.text(max_size=12) | SCALARS.map(str) | st.text("[]{}$:#&*!|>'\"%@`?,- 0a", max_size=10))
@example(key="lr", value="!!python/object/apply:os.getcwd []")
@example(key="model", value="&a [*a]")
@example(key="recipe", value="../../etc")
def test_any_setting_is_understood_or_refused(key, value):
    with contextlib.suppress(ConfigError):
        load("digits", overrides=[f"{key}={value}"])


@settings(deadline=None, max_examples=80)
@given(text=st.text(max_size=60) | st.text("ab: \n-[]{}&*!#'\"|>$", max_size=40))
def test_any_file_is_a_mapping_or_refused(text):
    with contextlib.suppress(ConfigError):
        assert isinstance(read_yaml(text, "a file"), dict)


@settings(deadline=None, max_examples=80)
@given(value=SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text("abc", min_size=1), SCALARS, max_size=3))
def test_a_value_that_is_written_is_read_as_itself(value):
    written = read_yaml(f"group:\n  it: {inline(value)}  # why\n", "a file")
    assert OmegaConf.to_container(OmegaConf.create(written), resolve=True) == {"group": {"it": value}}


@settings(deadline=None, max_examples=100)
@given(value=st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans())
def test_a_number_is_shown_as_it_is_given(value):
    assert parse_override(f"x={inline(value)}") == (["x"], value)
