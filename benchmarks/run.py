"""Run one suite of benchmarks and keep its figures: ``python benchmarks/run.py kernels``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import pytest
from machine import machine_name

HERE = Path(__file__).parent
SUITES = {"kernels": HERE / "kernels", "engines": HERE / "bench_engines.py", "slide": HERE / "bench_slide.py"}


def machine() -> str:
    """The name of this machine."""
    from cpuinfo import get_cpu_info

    return machine_name(get_cpu_info(), len(os.sched_getaffinity(0)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--out", type=Path, help="folder for JSON and Markdown; default: results/<machine>")
    parser.add_argument("--docs", type=Path, help="page to put the table of the kernels into")
    args, pytest_args = parser.parse_known_args()
    out = args.out or HERE / "results" / machine()
    out.mkdir(parents=True, exist_ok=True)
    figures = out / f"{args.suite}.json"
    options = ["-q", "--benchmark-only", "--benchmark-quiet", f"--benchmark-json={figures}"]
    code = pytest.main([str(SUITES[args.suite]), *options, *pytest_args])
    if not figures.exists() or not figures.stat().st_size:
        return int(code)
    results = json.loads(figures.read_text())
    results["commit_info"] = {"id": results["commit_info"]["id"]}
    results["machine_info"].pop("node")  # the machine's name says nothing of its speed
    for entry in results["benchmarks"]:
        entry["stats"].pop("data", None)
    figures.write_text(json.dumps(results, indent=1) + "\n")
    if args.suite == "kernels":
        sys.path.insert(0, str(HERE / "kernels"))
        import report

        print(report.write(out))
        if args.docs:
            report.insert(out, args.docs)
    else:
        for entry in results["benchmarks"]:
            print(entry["name"], entry["extra_info"])
    print(f"written to {out}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
