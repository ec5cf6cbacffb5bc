"""The bad-input matrix of rules between fields, and of model, devices and data: a rule without a row fails."""

import pytest
from helpers import PACKAGE
from helpers.refused import DIRECTORY, refusal, rules_of

# Options, and how the message begins.
RULES = {
    "batch over devices": ("--data.batch_size 34 --mesh.data 4", "data.batch_size=34: must be a multiple"),
    "steps over int32": (
        "--train.rounds 134217728 --data.batch_size 1",
        "train.rounds=134217728: a worker would read 2147483648 images (loft.local_steps=16, data.batch_size=1), but "
        "at most 2147483647 can be counted; try 134217727",
    ),
    "images over int32": (
        "--train.rounds 100000 --loft.local_steps 100 --data.batch_size 256",
        "train.rounds=100000: a worker would read 2560000000 images (loft.local_steps=100, data.batch_size=256), but "
        "at most 2147483647 can be counted; try 83886",
    ),
    "images of a round over int32": (
        "--train.rounds 1 --loft.local_steps 65536 --data.batch_size 65536",
        "train.rounds=1: a worker would read 4294967296 images (loft.local_steps=65536, data.batch_size=65536), but at "
        "most 2147483647 can be counted; lower one of them",
    ),
    "options of a network of the package": (
        '--model.options {"depth":3}',
        "model.options={'depth': 3}: preresnet20 takes none; only mlp and networks of your own",
    ),
    "an option that a perceptron does not have": (
        '--model.name mlp --model.options {"hidden_layer":3}',
        "model.options={'hidden_layer': 3}: mlp has no option hidden_layer; did you mean hidden_layers?",
    ),
    "a perceptron without hidden layers": (
        '--model.name mlp --model.options {"hidden_layers":0}',
        "model.options={'hidden_layers': 0}: mlp has hidden_layers=0, which must be 1 to 32",
    ),
    "a boolean as a number of layers": (
        '--model.name mlp --model.options {"hidden_layers":true}',
        "model.options={'hidden_layers': True}: mlp has hidden_layers=true, which must be 1 to 32",
    ),
    "norms of a perceptron": (
        '--model.name mlp --model.options {"norm":"bach"}',
        "model.options={'norm': 'bach'}: mlp has norm='bach', which must be 'running' or 'batch'",
    ),
    "width of a network of one's own": (
        "--model.name nets.py:Net --model.width 8",
        "model.width=8: a network of your own has its width in model.options; leave it out",
    ),
    "digits from a directory": ("--data.data_dir .", "data.data_dir=.: digits ships with scikit-learn"),
    "digits from files": ("--data.loading stream", "data.loading=stream: digits ships with scikit-learn"),
    "a folder from nowhere": ("--data.name folder", "data.data_dir=null: data.name=folder is read from a directory of"),
    "IDX files from nowhere": ("--data.name idx", "data.data_dir=null: data.name=idx is read from a directory of IDX"),
    "a folder to stream": (
        "--data.name folder --data.data_dir . --data.loading stream",
        "data.loading=stream: folder is kept on the device",
    ),
    "validation between images": (
        "--data.validation 2.5",
        "data.validation=2.5: must be a share below 1, or a",
    ),
    "arrays from nowhere": ("--data.name arrays", "data.data_dir=null: data.name=arrays is read from an .npz file"),
    "arrays from files": (
        "--data.name arrays --data.data_dir x.npz --data.loading stream",
        "data.loading=stream: arrays is kept on the device",
    ),
    "a traced round that there is not": (
        "--train.rounds 10 --train.profile_rounds 2,11",
        "train.profile_rounds=2,11: the run has no round 11, because train.rounds=10; try 2",
    ),
    "outer learning rate without an outer optimizer": (
        "--loft.outer_learning_rate 0.5",
        "loft.outer_learning_rate=0.5: has no effect with loft.outer=none; use loft.outer=nesterov, or leave it out",
    ),
    "outer steps of filters without an outer optimizer": (
        "--loft.outer_filters true",
        "loft.outer_filters=True: has no effect with loft.outer=none",
    ),
    "int8 of one worker": (
        "--loft.workers 1 --loft.wire int8",
        "loft.wire=int8: loft.workers=1 has no sync, in which something is sent; leave it out",
    ),
    "int8 of a pipeline": ("--gpipe.stages 2 --loft.wire int8", "loft.wire=int8: a pipeline has no sync"),
    "an outer optimizer of one worker": (
        "--loft.workers 1 --loft.outer nesterov",
        "loft.outer=nesterov: loft.workers=1",
    ),
    "fragments under psum": (
        "--loft.stagger 2",
        "loft.stagger=2: under loft.sync=psum every device holds all filters after each round; use loft.sync=exchange",
    ),
    "ranks of filters that are with their owners": (
        "--loft.deal ranked --loft.sync exchange",
        "loft.deal=ranked: under loft.sync=exchange no device holds all filters, to rank them; use loft.sync=psum",
    ),
    "averages after the end": (
        "--loft.shared_every 11 --train.rounds 10",
        "loft.shared_every=11: with train.rounds=10 not all shared variables would be averaged even once; try 10",
    ),
    "averages of fragments after the end": (
        "--loft.shared_every 3 --loft.stagger 4 --loft.sync exchange --train.rounds 10",
        "loft.shared_every=3: with loft.stagger=4 rounds, train.rounds=10 not all shared variables would be averaged "
        "even once; try 2",
    ),
    "ranks where nothing is split": (
        "--loft.deal ranked --loft.partition none",
        "loft.deal=ranked: with loft.partition=none no filters are split, to be dealt; leave it out",
    ),
    "outer steps of filters where nothing is split": (
        "--loft.outer nesterov --loft.outer_filters true --loft.partition none",
        "loft.outer_filters=True: with loft.partition=none no filters are split, to be stepped; leave it out",
    ),
    "fragments after the end": (
        "--loft.stagger 4 --loft.sync exchange --train.rounds 3",
        "loft.stagger=4: more fragments than train.rounds=3; try 3",
    ),
    "momentum of Adam": (
        "--optimizer.name adam --optimizer.momentum 0.5",
        "optimizer.momentum=0.5: has no effect, because optimizer.name=adam has optimizer.beta1; leave it out",
    ),
    "a second moment of SGD": (
        "--optimizer.beta2 0.99",
        "optimizer.beta2=0.99: has no effect, because optimizer.name=sgd has no second moment; leave it out",
    ),
    "milestones without steps": (
        "--optimizer.milestones 10",
        "optimizer.milestones=10: has no effect with optimizer.schedule=cosine; use step, or leave it out",
    ),
    "a milestone in the warm-up": (
        "--optimizer.schedule step --optimizer.milestones 5,900 --optimizer.warmup_steps 5",
        "optimizer.milestones=5,900: must lie between the end of warm-up, after local step 5, and the end of the run, "
        "after 1600 (train.rounds * loft.local_steps); 5 does not",
    ),
    "a milestone after the end": (
        "--optimizer.schedule step --optimizer.milestones 1600",
        "optimizer.milestones=1600: must lie between",
    ),
    "workers over devices": ("--mesh.worker 3", "mesh.worker=3: must divide loft.workers=4; try 2"),
    "stop that never holds": (
        "--train.stop_when 1 --train.rounds 10",
        "train.stop_snapshots=3: train.stop_when could never hold",
    ),
    "GPipe and LoFT": ("--gpipe.stages 2 --loft.workers 4", "gpipe.stages=2: is GPipe, which trains the full CNN"),
    "micro-batches": ("--gpipe.stages 2 --gpipe.microbatches 5", "gpipe.microbatches=5: must divide"),
    "nearest micro-batches": (
        "--gpipe.stages 2 --data.batch_size 1000000 --gpipe.microbatches 999",
        "gpipe.microbatches=999: must divide data.batch_size=1000000; try 1000",
    ),
    "micro-batches of a huge batch": (
        "--gpipe.stages 2 --data.batch_size 2147483647 --gpipe.microbatches 2147483646",
        "gpipe.microbatches=2147483646: must divide data.batch_size=2147483647; try 2147483647",
    ),
    "number of cuts": ("--gpipe.stages 3 --gpipe.cuts stage1/block1", "gpipe.cuts=stage1/block1: must name 2 blocks"),
    "a pipeline is one process": (
        "--gpipe.stages 2 --distributed.coordinator host:1 --distributed.processes 2 --distributed.process_id 0",
        "gpipe.stages=2: GPipe runs in one process, not in distributed.processes=2",
    ),
    "a stage is a device": ("--gpipe.stages 2 --mesh.data 2", "mesh.data=2: a stage of GPipe is one device"),
    "a stage is one worker": ("--gpipe.stages 2 --mesh.worker 1 --mesh.data 4", "mesh.data=4: a stage of GPipe is one"),
    "a coordinator alone": (
        "--distributed.coordinator host:1",
        "distributed.coordinator=host:1: needs distributed.processes and distributed.process_id",
    ),
    "processes without a coordinator": (
        "--distributed.processes 2 --distributed.process_id 0",
        "distributed.processes=2: needs distributed.coordinator",
    ),
    "a coordinator, and auto": (
        "--distributed auto --distributed.coordinator host:1 --distributed.processes 2 --distributed.process_id 0",
        "distributed.mode=auto: detects what distributed.coordinator=host:1 sets",
    ),
    "a process past the last": (
        "--distributed.coordinator host:1 --distributed.processes 2 --distributed.process_id 2",
        "distributed.process_id=2: must be below distributed.processes=2",
    ),
}
# The same, once model, devices (four, here) and data are seen.
LATER_RULES = {
    "more fragments than groups": (
        "--loft.stagger 50 --loft.sync exchange",
        "loft.stagger=50: there are only 4 split filter groups to take turns; try 4",
    ),
    "workers over widths": ("--loft.workers 3", "loft.workers=3: must divide every partitioned width"),
    "IST over neurons": (
        "--model.name mlp --model.width 64 --loft.workers 3",
        "loft.workers=3: nothing of the network can be split (3 workers divide the width of none of its filter groups "
        "(dense1 64, dense2 64); try 2)",
    ),
    "many workers": ("--loft.workers 2147483647", "loft.workers=2147483647: must divide every partitioned width"),
    "stages over blocks": ("--gpipe.stages 10", "gpipe.stages=10: must be at most the 9 blocks"),
    "cuts of the paper": ("--gpipe.stages 2 --gpipe.cuts paper", "gpipe.cuts=paper: the paper cuts"),
    "cut at no block": (
        "--gpipe.stages 2 --gpipe.cuts stage9/block1",
        "gpipe.cuts=stage9/block1: stage9/block1 must be a block",
    ),
    "cut behind the last": (
        "--gpipe.stages 2 --gpipe.cuts stage3/block3",
        "gpipe.cuts=stage3/block3: stage3/block3 must be a block",
    ),
    "cuts in order": (
        "--gpipe.stages 3 --gpipe.cuts stage2/block1,stage1/block1",
        "gpipe.cuts=stage2/block1,stage1/block1: must be in network order",
    ),
    "data over devices": ("--mesh.data 8", "mesh.data=8: only 4 cpu devices are available"),
    "stages over devices": ("--gpipe.stages 5", "gpipe.stages=5: each stage needs its own device, and only 4"),
    "workers and data over devices": ("--mesh.worker 4 --mesh.data 2", "mesh.worker=4: with mesh.data=2 it needs 8"),
    "too few images": (
        "--data.split disjoint --loft.partition none --loft.workers 2000",
        "loft.workers=2000: 1437 images are too few for data.split=disjoint",
    ),
}
# Rules that no command line can break here: tests of their own break them.
TESTED_ELSEWHERE = (
    "TFDS data sets need libraries",
    "GPipe runs in one process, but",
    "belongs to the filter groups",
    "JAX finds no device to run on",
)
TESTED_ELSEWHERE += ("which cannot be mirrored", "takes images, and")
TESTED_ELSEWHERE += ("is streamed, which decides about it", "is streamed, and images are held out only")
TESTED_ELSEWHERE += ("cannot be spread evenly", "cannot be taken evenly", "GPipe trains on data that are kept")
TESTED_ELSEWHERE += ("trains no pruned weights", "must be a Config, not ")
TESTED_ELSEWHERE += ("is not a sequence of blocks", "must be a block with another one after it")
THEORY_RULES = {
    "channels of digits": ("--theory.channels 4", "theory.channels=4: must be 8 for theory.data=digits"),
    "pixels of digits": ("--theory.pixels 16", "theory.pixels=16: must be 8 for theory.data=digits"),
    "a window past the edge": (
        "--theory.data gaussian --theory.pixels 4 --theory.window 5",
        "theory.window=5: must be at most theory.pixels=4; try 4",
    ),
    "more workers than filters": ("--theory.workers 65", "theory.workers=65: must be at most the 64 filters"),
    "more swept workers than filters": (
        "--theory.sweep_workers 4,128 --theory.filters 100",
        "theory.sweep_workers=128: must be at most the 64 filters of the smallest network; try 64",
    ),
    "a number twice": ("--theory.sweep_xi 0.5,0.50", "theory.sweep_xi=0.5,0.50: names a number twice"),
    "a number out of range": ("--theory.sweep_xi 0.5,2", "theory.sweep_xi=0.5,2: '2' is out of range or not a number"),
    "a step that diverges": ("--theory.eta 2", "theory.eta=2: descent diverges unless its step (1.88) times"),
    "a swept step that diverges": ("--theory.sweep_eta 0.1,3", "theory.sweep_eta=3: descent diverges"),
    "a step that diverges by its gradient's scale": (
        "--theory.xi 0.1 --theory.eta 0.5 --theory.scale differentiated",
        "theory.eta=0.5: descent diverges unless its step (1.72) times",
    ),
}
ALL_RULES = {**RULES, **LATER_RULES, **THEORY_RULES}


@pytest.fixture(scope="module")
def said_to_rules(place):
    command = {row: "theory" if row in THEORY_RULES else "train" for row in ALL_RULES}
    return {
        row: refusal(
            command[row],
            *options.split(),
            DIRECTORY[command[row]],
            f"later {row}",
            sees_devices=row in LATER_RULES,
        )
        for row, (options, _) in ALL_RULES.items()
    }


@pytest.mark.parametrize("row", ALL_RULES)
def test_settings_that_do_not_go_together_are_refused(row, said_to_rules):
    assert said_to_rules[row].removeprefix("command line: ").startswith(ALL_RULES[row][1])
    assert "\n" not in said_to_rules[row]


@pytest.mark.parametrize(
    "file",
    [
        "config/config.py",
        "config/loft.py",
        "gpipe/cuts.py",
        "loft/split.py",
        "devices/mesh.py",
        "loft/exchange.py",
        "methods/build.py",
        "train/experiment.py",
        "data/load.py",
        "theory/config.py",
        "theory/sweep.py",
    ],
)
def test_every_rule_has_a_row(file, said_to_rules):
    for line, message in rules_of(PACKAGE / file):
        if not any(text in message.pattern.replace("\\", "") for text in TESTED_ELSEWHERE):
            assert any(map(message.search, said_to_rules.values())), f"{file}:{line}: {message.pattern} has no row"
