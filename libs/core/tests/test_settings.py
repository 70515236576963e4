from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from muxflow.settings import Settings, SettingsError, load


class WaterSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    depth_m: float = 1.0
    names: tuple[str, ...] = ()


class WaterSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    scheduler: WaterSection = WaterSection()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "muxflow.toml"
    path.write_text(text)
    return path


def test_without_file_and_variables_everything_has_its_default() -> None:
    settings = load(WaterSettings, None, {})
    assert settings == WaterSettings()
    assert list(settings.tenants) == ["default"]


def test_the_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "[scheduler]\ndepth_m = 2.0\n[lease]\nnode_s = 5\n")
    settings = load(WaterSettings, path, {"MUXFLOW_SCHEDULER__DEPTH_M": "3.5", "MUXFLOW_SCHEDULER__NAMES": '["a","b"]'})
    assert settings.scheduler == WaterSection(depth_m=3.5, names=("a", "b"))
    assert settings.lease.node_s == 5


def test_the_file_can_be_named_by_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "[scheduler]\ndepth_m = 2.0\n")
    assert load(WaterSettings, None, {"MUXFLOW_CONFIG": str(path)}).scheduler.depth_m == 2.0


def test_sections_of_other_services_are_left_to_them(tmp_path: Path) -> None:
    path = write(tmp_path, '[executor]\nwhatever = "it reads this itself"\n')
    assert load(WaterSettings, path, {"MUXFLOW_EXECUTOR__NODE": "a"}) == WaterSettings()


def test_variables_that_are_no_settings_are_ignored() -> None:
    load(WaterSettings, None, {"MUXFLOW_STATE_DIR": "/x", "PATH": "/bin", "OTHER__THING": "1"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[scheduler]\ndeepth_m = 1\n", "scheduler.deepth_m: unknown key; did you mean 'depth_m'?"),
        ("[schduler]\ndepth_m = 1\n", "there is no section [schduler]; did you mean 'scheduler'?"),
        ("[scheduler]\ndepth_m = 'deep'\n", "scheduler.depth_m: expected `float`, got `str`"),
        ("[lease]\nnode_s = -1\n", "lease.node_s: expected `float` >= 0.5"),
        ("[scheduler\n", "not valid TOML"),
        ("[tenants.a]\ncolour = 'red'\n", "tenants[...].colour: unknown key"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load(WaterSettings, path, {})
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"MUXFLOW_SCHEDULER__DEEPTH_M": "1"},
            "MUXFLOW_SCHEDULER__DEEPTH_M: scheduler.deepth_m: unknown key; did you mean",
        ),
        ({"MUXFLOW_SCHEDULER__DEPTH_M": "deep"}, "MUXFLOW_SCHEDULER__DEPTH_M: scheduler.depth_m: expected `float`"),
        ({"MUXFLOW_SCHEDULR__DEPTH_M": "1"}, "MUXFLOW_SCHEDULR__DEPTH_M: there is no section [schedulr]"),
        ({"MUXFLOW_SCHEDULER__NAMES": "[1,"}, "MUXFLOW_SCHEDULER__NAMES: looks like JSON and is not"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(variables: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(WaterSettings, None, variables)
    assert str(caught.value).startswith(message.split(";", maxsplit=1)[0])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: cannot be read: No such file"):
        load(WaterSettings, tmp_path / "none.toml", {})
