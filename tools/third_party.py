"""Measure the third-party ResNet-20 and write data/measured/third-party-resnet20.json, a second baseline for Table 1.

python tools/third_party.py PATH/resnet20-12fca82f.th
"""

import json
import sys
from pathlib import Path

import torch

from csgbook import measured
from csglib import data, paths
from csglib.analysis import metrics
from csglib.networks import resnet
from csglib.runs import provenance
from csglib.runs.inference import read_out

if len(sys.argv) != 2:
    sys.exit(__doc__)
weights = Path(sys.argv[1])
dataset = data.load("cifar10")
readout = read_out(resnet.resnet20_of_akamaster(weights), None, dataset.test)
result = {
    "source": "github.com/akamaster/pytorch_resnet_cifar10, commit d5489e8995e81e91ce6b1d69dcc98ad579b0b153",
    "sha256": paths.digest(weights),
    "data_digest": dataset.digest,
    "metrics": metrics.evaluate(readout),
} | provenance.here(torch.device("cpu"))
measured.write("third-party-resnet20", result)
print(json.dumps(result["metrics"], indent=2))
