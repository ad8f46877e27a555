"""Runs ``infer`` in a process of its own that may be killed, or starved, at a chosen moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

from nucfast.pipeline import infer

# Everything by which a run changes what is on disk; the process dies just before one of them.
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def start(slide, out, *, kill_at=None, file_bytes=None, events=None, **settings):
    """A started process that runs ``infer(slide, out, **settings)`` and exits with its code.

    Args:
        kill_at: it kills itself just before its n-th step on the output folder.
        file_bytes: it cannot write larger files, as on a full disk.
        events: file to which it appends its events.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["nucfast.pipeline", "pyarrow", "tifffile", "imagecodecs", "openslide", "openvino"]
    )
    process = context.Process(
        target=_run, args=(Path(slide), Path(out), kill_at, file_bytes, events, settings)
    )
    process.start()
    return process


def run(slide, out, **settings):
    """The exit code of a run; -9 if it was killed."""
    process = start(slide, out, **settings)
    process.join()
    return process.exitcode


def _run(slide, out, kill_at, file_bytes, events, settings):
    if kill_at is not None:
        left = kill_at

        def hook(event, arguments):
            nonlocal left
            if event in STEPS and arguments and str(out) in str(arguments[0]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    def note(event):
        if events is not None:
            with Path(events).open("a") as file:
                file.write(json.dumps(event) + "\n")

    os._exit(infer(slide, out, on_event=note, **settings).exit_code)
