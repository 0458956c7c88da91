from __future__ import annotations

import re

import pytest
from render import samples

from nndiag import settings
from nndiag.errors import SettingsError
from nndiag.settings import Settings


@pytest.fixture(autouse=True)
def _sample_rules(monkeypatch):
    samples.use_sample_rules(monkeypatch)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(table, name="pyproject.toml"):
        (tmp_path / name).write_text(table, encoding="utf-8")
        return tmp_path / name

    return write


WHOLE = """
[tool.nndiag]
select = ["ND1", "init-scale"]
ignore = ["saturation"]
fail-on = "error"
seed = 7
max-batches = 3

[tool.nndiag.thresholds]
"dead-relu.share" = 0.5
dead-relu.samples = 20
"""


def test_every_setting_is_read_from_the_file_in_the_working_directory(project):
    project(WHOLE)

    assert settings.load() == Settings(
        select=("ND1", "init-scale"),
        ignore=("saturation",),
        fail_on="error",
        seed=7,
        thresholds={"dead-relu.share": 0.5, "dead-relu.samples": 20},
        max_batches=3,
    )


def test_the_nearest_file_above_is_the_one(project, tmp_path, monkeypatch):
    project("[tool.nndiag]\nseed = 1")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert settings.load().seed == 1

    (tmp_path / "a" / "pyproject.toml").write_text("[tool.nndiag]\nseed = 2")
    assert settings.load().seed == 2

    (tmp_path / "a" / "b" / "pyproject.toml").write_text("[project]")
    assert settings.load() == Settings()


def test_no_file_leaves_the_defaults(project):
    assert settings.load() == Settings()
    assert Settings().fail_on == "warning"
    assert Settings().max_batches == 64


def test_false_reads_no_file(project):
    project(WHOLE)

    assert settings.load(False) == Settings()


def test_a_mapping_is_settings_by_itself(project):
    project(WHOLE)

    assert settings.load({"seed": 3, "select": "ND1"}) == Settings(seed=3, select=("ND1",))


def test_another_file_can_be_named(project):
    path = project("[tool.nndiag]\nseed = 9", name="other.toml")

    assert settings.load(path).seed == 9
    assert settings.load(str(path)).seed == 9


def test_what_is_given_explicitly_is_over_the_file_and_the_file_over_the_default(project):
    project(WHOLE)

    merged = settings.load().override(seed=0, select="ND2", thresholds={"dead-relu": {"share": 1}})

    assert merged.seed == 0
    assert merged.select == ("ND2",)
    assert merged.ignore == ("saturation",)
    assert merged.thresholds == {"dead-relu.share": 1, "dead-relu.samples": 20}


def test_none_is_not_given(project):
    project(WHOLE)

    assert settings.load().override(select=None, seed=None) == settings.load()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("selct = []", "has no setting 'selct'. Did you mean 'select'? Choose one of: select, "
                       "ignore, fail-on, seed, thresholds, max-batches, report, format, baseline."),
        ("fail_on = 'error'", "has no setting 'fail_on'. Did you mean 'fail-on'?"),
        ("fail-on = 'note'", "fail-on = 'note': write \"error\", \"warning\" or \"never\"."),
        ("seed = -1", "seed = -1: write a whole number from 0 to 4294967295."),
        ("seed = true", "seed = True: write a whole number"),
        ("seed = 1.5", "seed = 1.5: write a whole number"),
        ("select = 3", "select = 3: write a list of rule names, codes"),
        ("ignore = [3]", "ignore = [3]: write a list of rule names, codes"),
        ("max-batches = 0", "max-batches = 0: write a whole number, 1 or more."),
        ("thresholds = 3", "thresholds = 3: write a table of numbers"),
        ("thresholds = {dead-relu = {share = 'x'}}", "write a table of numbers"),
        ("thresholds = {'dead-relu.share' = 40}",
         "thresholds: threshold dead-relu.share = 40: it lies between 0 and 1. For 40 %"),
        ("thresholds = {'dead-relu.shar' = 0.4}",
         "thresholds: dead-relu has no threshold 'shar'. Did you mean 'share'?"),
        ("select = ['dead-rel']", "select: no rule is called 'dead-rel'. Did you mean 'dead-relu'"),
        ("ignore = 'ND9'", "ignore: no rule is called 'ND9'."),
    ],
)  # fmt: skip
def test_a_wrong_setting_names_the_file_the_key_and_what_is_legal(project, line, message):
    path = project(f"[tool.nndiag]\n{line}")

    with pytest.raises(SettingsError, match=re.escape(message)) as caught:
        settings.load()
    assert str(caught.value).startswith(f"{path} [tool.nndiag] ")


def test_a_wrong_setting_of_a_mapping_names_the_argument():
    with pytest.raises(SettingsError, match=r"^config has no setting 'sed'\. Did you mean 'seed'"):
        settings.load({"sed": 1})


def test_broken_toml_is_said_with_its_line(project):
    path = project("[tool.nndiag\n")

    with pytest.raises(SettingsError, match=rf"^{re.escape(str(path))} is not valid TOML: "):
        settings.load()


def test_a_table_that_is_no_table_is_refused(project):
    project("[tool]\nnndiag = 3")

    with pytest.raises(SettingsError, match=r"tool\.nndiag = 3: write a table"):
        settings.load()


def test_a_named_file_that_is_missing_or_empty_of_settings_is_refused(project, tmp_path):
    with pytest.raises(SettingsError, match=r"gone\.toml cannot be read: No such file"):
        settings.load(tmp_path / "gone.toml")
    with pytest.raises(SettingsError, match=r"other\.toml has no \[tool\.nndiag\] table"):
        settings.load(project("[project]", name="other.toml"))


@pytest.mark.parametrize("config", [True, 3, ["seed"]])
def test_a_config_of_another_kind_is_refused(config):
    with pytest.raises(SettingsError, match="Pass a mapping of settings, the path"):
        settings.load(config)
