import pytest
from click.testing import CliRunner

from nucfast.cli.infer import command
from nucfast.errors import NucfastError
from nucfast.pipeline.config import InferConfig
from nucfast.pipeline.memory import available_memory, parse_size, processes_in_memory, regions_in_memory
from nucfast.pipeline.stages import Stages


def test_sizes():
    assert [parse_size(text) for text in ("7", "2K", "800M", "1.5G", "2GiB", "1 TB")] == [
        7,
        2048,
        800 * 2**20,
        3 * 2**29,
        2**31,
        2**40,
    ]
    for text in ("", "much", "-1G", "1X"):
        with pytest.raises(NucfastError, match="max_memory: expected a size"):
            parse_size(text)


def test_the_tightest_control_group_counts(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16384 kB\nMemFree: 1 kB\n")
    assert available_memory(tmp_path) == 16 * 2**20
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    (tmp_path / "proc/self/mountinfo").write_text("1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n")
    (tmp_path / "sys/fs/cgroup/job/step").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/job/step/memory.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/job/memory.max").write_text(f"{4 * 2**20}\n")
    assert available_memory(tmp_path) == 4 * 2**20


def test_regions_that_fit():
    assert regions_in_memory("100G", 10**6, most=6) == 6
    few = regions_in_memory("2G", 2 * 10**7, most=6)
    assert 1 <= few < 6
    assert regions_in_memory(None, 10**12, most=6) == 1
    with pytest.raises(NucfastError, match=r"max_memory: 600M is less than .* lower --region-px"):
        regions_in_memory("600M", 10**7, most=6)


@pytest.mark.parametrize("shard", [(0, 3), (4, 3)])
def test_shards_that_are_none(shard):
    with pytest.raises(NucfastError, match="shard: expected i/n"):
        InferConfig(shard=shard)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("3", {}, "expected I/N"),
        ("a/b", {}, "expected I/N"),
        ("slurm", {}, "use sbatch --array"),
        ("slurm", {"ID": "x", "MIN": "0", "MAX": "3", "COUNT": "4", "STEP": "1"}, "got ID=x, MIN=0"),
        ("slurm", {"ID": "1", "MIN": "x", "MAX": "3", "COUNT": "4", "STEP": "1"}, "got ID=1, MIN=x"),
        ("slurm", {"ID": "1", "MIN": "0", "MAX": "3", "COUNT": "4", "STEP": "0"}, "in steps of 0"),
        *(
            (
                "slurm",
                {"ID": task, "MIN": "3", "MAX": "7", "COUNT": "2", "STEP": "1"},
                "$SLURM_ARRAY_TASK_ID/N",
            )
            for task in "37"
        ),
    ],
)
def test_bad_shards_on_the_command_line(text, environment, message):
    environment = {f"SLURM_ARRAY_TASK_{name}": value for name, value in environment.items()}
    result = CliRunner().invoke(command, ["x.svs", "-o", "out", "--shard", text], env=environment)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_shards_of_a_slurm_array(monkeypatch):
    from nucfast.cli.infer import parse_shard

    for name, value in {"ID": "14", "MIN": "10", "MAX": "16", "COUNT": "4", "STEP": "2"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert parse_shard("slurm") == (3, 4)
    assert parse_shard("2/7") == (2, 7)


def test_the_stage_that_never_waits_is_the_bottleneck():
    stages = Stages(
        seconds={"read": 2.0, "network": 9.5, "decode": 12.0, "write": 30.0},
        mpx={"read": 10.0, "network": 10.0, "decode": 10.0, "write": 0.0},
        offered={"read": 10.0, "network": 10.0, "decode": 20.0},
    )
    assert stages.bottleneck() == "network"
    assert stages.idle("decode") == pytest.approx(0.4)
    assert stages.idle("write") is None
    assert [row["idle"] for row in stages.rows()] == [0.8, 0.05, 0.4, None]


def test_a_stage_that_never_worked_is_no_bottleneck():
    empty_slide = Stages(
        seconds={"tissue": 0.2, "finish": 0.1},
        mpx={"tissue": 0.0, "finish": 0.0},
        offered={"read": 1.0, "network": 1.0},
    )
    assert empty_slide.bottleneck() == "tissue"


def test_processes_share_the_memory():
    assert processes_in_memory(None, 10**12, most=6) == 6
    assert processes_in_memory("100G", 10**6, most=6) == 6
    assert processes_in_memory("1.6G", 10**5, most=6) == 2
    assert processes_in_memory("100M", 10**5, most=6) == 1
