"""Clusters of several nodes: files each must see, local paths in workers, and a lost node."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from marks import SLOW
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openrlhf_ktae.base.errors import ProcessDied, Refusal
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.launch import nodes
from openrlhf_ktae.launch.launch import check_cluster
from openrlhf_ktae.launch.nodes import NodeWatch, check_nodes, content, look, places, with_absolute_places

pytestmark = SLOW

WORDS = (
    "--pretrain examples/quickstart/model --prompt_data examples/quickstart/data/train.jsonl@train,Hub/name "
    "--vllm_num_engines 2 --actor.num_gpus_per_node 2 --label_key label --advantage_estimator ktae "
    "--n_samples_per_prompt 4 --train.colocate_all"
)


@pytest.fixture
def args(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    return parse_command_line([*WORDS.split(), "--run.dir", os.path.relpath(tmp_path / "run")])


@pytest.fixture(scope="module")
def two_raylets(nothing_kept):
    """Start a head and a second node on this machine, which share its files."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 * 2**20)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield second
    ray.shutdown()
    cluster.shutdown()


def test_local_paths_become_absolute_and_hub_names_do_not(args, root, tmp_path):
    placed = with_absolute_places(args)
    assert placed.actor.model_name_or_path == f"{root}/examples/quickstart/model"
    assert placed.data.prompt_dataset == f"{root}/examples/quickstart/data/train.jsonl@train,Hub/name"
    assert placed.ckpt.path == f"{tmp_path}/run/checkpoints"
    assert placed.ckpt.output_dir == f"{tmp_path}/run/model"
    assert args.actor.model_name_or_path == "examples/quickstart/model", "the record must keep the user's options"


def test_a_reward_file_is_a_path_too(root, monkeypatch):
    monkeypatch.chdir(root)
    words = ["--reward.remote_url", "tests/marks.py"]
    placed = with_absolute_places(parse_command_line([*WORDS.split(), *words]))
    assert placed.verifier.config.reward_file == f"{root}/tests/marks.py"
    assert f"--reward.remote_url {root}/tests/marks.py" in places(placed, nodes.INPUTS)


@pytest.mark.parametrize("cpus_of_the_driver", [1, nodes.TRAINER_CPUS])
def test_nodes_that_see_all_files_can_train(two_raylets, args, monkeypatch, cpus_of_the_driver):
    monkeypatch.setattr(nodes, "TRAINER_CPUS", cpus_of_the_driver)
    (args_dir := nodes.Path(args.run.dir)).mkdir()
    check_nodes(with_absolute_places(args), "cpu")
    assert not list(args_dir.glob(".*")), "probe files must be removed"


def test_a_node_that_lacks_files_is_refused_with_each_option(two_raylets, args, tmp_path, monkeypatch):
    """Both nodes share this file system, so the driver is made to see files that the second node lacks."""
    real_content, real_nearest = nodes.content, nodes.nearest
    ghost = tmp_path / "only-here"
    ghost.mkdir()
    monkeypatch.setattr(nodes, "nearest", lambda path: ghost if "checkpoints" in path else real_nearest(path))
    monkeypatch.setattr(nodes, "content", lambda path: {**real_content(path), "more.safetensors": 7})
    touch = nodes.Path.touch
    monkeypatch.setattr(nodes.Path, "touch", lambda path: None if path.parent == ghost else touch(path))
    nodes.Path(args.run.dir).mkdir()
    with pytest.raises(Refusal) as refusal:
        check_nodes(with_absolute_places(args), "cpu")
    text = str(refusal.value)
    address = two_raylets.node_ip_address
    assert f"--ckpt.path {tmp_path}/run/checkpoints: node {address} (" in text
    assert "does not see this folder, where its ranks must write. Give a folder on a file system" in text
    assert "has other files there: more.safetensors. Put it on a file system that all nodes share" in text
    assert "--ckpt.output_dir" not in text
    assert not list(nodes.Path(args.run.dir).glob(".*"))


def old_driver(args, backend):
    """Return a problem that names the node this runs on."""
    import ray

    return [f"--backend {backend}: node {ray.get_runtime_context().get_node_id()} has an old driver"]


def test_a_node_that_lacks_something_is_refused_by_name(two_raylets, args, monkeypatch):
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(nodes, "machine_problems", old_driver)
    nodes.Path(args.run.dir).mkdir()
    (second,) = [node for node in ray.nodes() if node["NodeID"] != ray.get_runtime_context().get_node_id()]
    with pytest.raises(Refusal) as refusal:
        check_nodes(with_absolute_places(args), "cuda")
    name = f"node {second['NodeManagerAddress']} ({second['NodeManagerHostname']})"
    assert str(refusal.value) == f"{name}: --backend cuda: node {second['NodeID']} has an old driver"


def test_a_node_whose_files_are_not_visible_here_is_refused(two_raylets, args, tmp_path, monkeypatch):
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(nodes, "look", lambda *_: [])
    monkeypatch.setattr(nodes, "SEEN_SECONDS", 0.1)
    nodes.Path(args.run.dir).mkdir()
    with pytest.raises(
        Refusal, match=rf"--ckpt.path {tmp_path}/run/checkpoints: files that node .* are not visible here"
    ):
        check_nodes(with_absolute_places(args), "cpu")


def test_missing_or_changed_files_on_a_node_are_reported(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"123")
    (model / ".cache").mkdir()
    (model / ".cache" / "lock").write_bytes(b"1")
    (model / "README.md").write_bytes(b"1")
    (model / "link").symlink_to(model / "weights")
    assert content(str(model)) == {"weights": 3, "link": 3}
    assert look("t", "n", {}, {"--m": (str(model), content(str(model)))}) == []
    ((flag, what),) = look("t", "n", {}, {"--m": (str(model), {"weights": 4, "link": 3})})
    assert (flag, what.startswith("has other files there: weights. ")) == ("--m", True)
    ((_, what),) = look("t", "n", {}, {"--m": (str(tmp_path / "no"), {})})
    assert what.startswith("does not have it, and its ranks and engines read it. ")


def test_a_lost_node_ends_the_run_and_may_return(two_raylets, args):
    """Must run last, because it kills the second node."""
    import psutil
    import ray

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    never = ray.remote(num_cpus=0)(lambda: time.sleep(1000)).options(scheduling_strategy=here).remote()
    check_cluster(args, print)
    too_many = parse_command_line([*WORDS.split(), "--actor.num_gpus_per_node", "3", "--vllm_num_engines", "3"])
    with pytest.raises(Refusal, match="has 2 devices and this run needs 3"):
        check_cluster(too_many, print)
    before = signal.getsignal(nodes.LOST_SIGNAL)
    said = []
    with NodeWatch(needed=1, patience=0), NodeWatch(needed=2, patience=3.0) as watch:
        (raylet,) = [one for one in psutil.Process().children(recursive=True) if one.pid == _raylet(two_raylets)]
        raylet.kill()
        with pytest.raises(nodes.NodeDied, match=two_raylets.node_ip_address):  # before Ray notices
            check_nodes(with_absolute_places(args), "cpu")
        with pytest.raises(KeyboardInterrupt):
            ray.get(never, timeout=150)
    assert f"node {two_raylets.node_ip_address} is gone; 1 devices are left, and the run needs 2" == watch.lost
    assert signal.getsignal(nodes.LOST_SIGNAL) == before
    with pytest.raises(ProcessDied, match=r"1 devices are left, and this run needs 2; none joined within 1 s"):
        check_cluster(args, said.append, patience=1.0)
    assert said == [
        "a node of the cluster died; 1 devices are left, and this run needs 2; "
        "waiting up to 1 s for it or a replacement"
    ]


def _raylet(node):
    (process,) = node.all_processes["raylet"]
    return process.process.pid
