"""The commands of fcnlab."""

# In the order of the help, with a sentence on each.
VERBS = {
    "train": "train a network; writes checkpoints, scores, curves and images to outputs/",
    "eval": "evaluate a checkpoint: mIoU and three more scores, per class and per image",
    "predict": "segment images: palette PNGs and overlays",
    "doctor": "check a data set and this machine for problems",
    "compare": "compare runs: tables, confidence intervals, significance tests, an HTML page",
    "watch": "follow running sweeps and runs on a local page, or in the terminal with --terminal",
    "figure": "draw images, predictions of several runs and ground truth side by side: PDF and PNG",
    "export": "write the network of a checkpoint for other programs: ONNX, torch.export, safetensors",
    "card": "write a model card of a checkpoint: scores, training, limits; for the Hugging Face Hub",
    "bench": "measure speed and memory, and compare them with other libraries",
    "wandb": "write recorded runs to Weights & Biases; save a view or a report of runs there",
    "new": "write a package for your own backbones, losses, metrics and data sets, with tests",
}
ARGUMENTS = {"new": "folder"}  # the setting that the word after a command stands for, as in fcnlab new mylab
# The word after a command that says what it does, as in fcnlab wandb push, with a sentence on each.
ACTIONS = {
    "wandb": {
        "push": "write the W&B runs of run folders: lost ones, or of runs without W&B",
        "workspace": "save a view of the compared runs in W&B",
        "report": "save a report on the compared runs in W&B",
    },
}
LISTS = {  # settings of each command that are typed as A,B
    "compare": ("runs",),
    "watch": ("runs",),
    "figure": ("runs", "images"),
    "card": ("evaluations", "datasets"),
    "bench": ("benchmarks",),
    "wandb": ("runs",),
}
