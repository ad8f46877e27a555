"""The `[network]` table of a small network of every kind in the registry."""

NUCLEUS = {"nucleus": 1}
SMALL = {
    "unet": {"kind": "unet", "widths": [4, 8, 16], "heads": NUCLEUS, "batch_norm": True, "dropout": 0.1},
    "fcn": {"kind": "fcn", "widths": [4, 4, 8, 8], "heads": NUCLEUS},
    "linknet": {"kind": "linknet", "widths": [8, 16], "heads": NUCLEUS},
    "segnet": {"kind": "segnet", "widths": [4, 8], "depths": [1, 2], "heads": NUCLEUS},
    "unet_sharp": {
        "kind": "unet_sharp",
        "width": 4,
        "bridge": 8,
        "depths": [1, 1, 1, 1],
        "heads": {"semantic": 4},
    },
    "fast_unet": {"kind": "fast_unet", "widths": [8, 8, 8, 8], "head_width": 8, "classes": 3},
}
SMALL["ensemble"] = {"kind": "ensemble", "members": [SMALL["unet"], SMALL["linknet"]]}
