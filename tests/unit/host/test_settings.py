from pathlib import Path

import pytest

from ramet.errors import UsageError
from ramet.host.settings import Settings, default_state_dir, load, reference, unknown_variables, variable


def test_defaults_hold_where_nothing_is_said(tmp_path: Path) -> None:
    settings = load({"state_dir": tmp_path}, {})
    assert settings == Settings(state_dir=tmp_path)
    assert settings.api_socket == tmp_path / "run" / "api.sock"
    assert settings.streams_socket == tmp_path / "run" / "streams.sock"
    assert load({}, {}).state_dir == default_state_dir()


def test_a_flag_wins_over_a_variable_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("chain_bound = 3\ntask_history = 30\nevent_history = 300\n")
    env = {"RAMET_STATE": str(tmp_path), "RAMET_TASK_HISTORY": "40", "RAMET_EVENT_HISTORY": "400"}
    settings = load({"event_history": 500, "qemu_user": None}, env)
    assert settings.state_dir == tmp_path
    assert (settings.chain_bound, settings.task_history, settings.event_history) == (3, 40, 500)


def test_a_relative_state_directory_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({"state_dir": "s"}, {}).state_dir == tmp_path / "s"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("chain_bnd = 8", "there is no setting 'chain_bnd'", "Did you mean 'chain_bound'?"),
        ("chain_bound = 1", "The setting chain_bound: Input should be greater", "It stands in"),
        ("chain_bound = 'x'", "The setting chain_bound: Input should be a valid integer", "It stands in"),
        ("chain_bound =", "is not valid TOML", "Write lines like"),
        ("state_dir = '/x'", "cannot stand in its own folder", "RAMET_STATE"),
    ],
)
def test_a_wrong_file_is_refused_with_the_remedy(tmp_path: Path, text: str, message: str, hint: str) -> None:
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load({"state_dir": tmp_path}, {})
    assert hint in (caught.value.hint or "")


def test_wrong_variables_and_flags_are_named() -> None:
    with pytest.raises(UsageError, match="variable RAMET_CHAIN_BOUND"):
        load({}, {"RAMET_CHAIN_BOUND": "many"})
    with pytest.raises(UsageError, match="given as --chain-bound"):
        load({"chain_bound": "many"}, {})
    with pytest.raises(UsageError, match="no setting 'chains'"):
        load({"chains": 1}, {})


def test_a_slip_in_a_variable_is_noticed_and_others_are_left_alone() -> None:
    env = {"RAMET_CHAIN_BUOND": "8", "RAMET_DEBUG": "1", "RAMET_STATE": "/s", "PATH": "/bin"}
    assert unknown_variables(env) == ["Nothing reads RAMET_CHAIN_BUOND; did you mean RAMET_CHAIN_BOUND?"]


def test_every_setting_is_documented() -> None:
    table = reference()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"| `{name}` | `{variable(name)}` |" in table
