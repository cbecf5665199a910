"""Reward servers that fail temporarily, for some queries, from the start, or permanently."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.base.faults_config import SERVER_VARIABLE
from openrlhf_ktae.checks.user_code import _unanswered

GOOD = {"rewards": [0.75]}


class Server:
    """Answers queries with `answers` in turn (a body, a status or an action), repeating the last."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if answer == "hang":
                    time.sleep(3)
                elif answer == "hang up":
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif isinstance(answer, int):
                    self.send_error(answer)
                else:
                    body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/get_reward"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(*answers):
        servers.append(Server(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def agent(host, monkeypatch):
    from openrlhf_ktae.trainer.ray.vllm_engine import with_servers
    from openrlhf_ktae.verifier import http_reward

    monkeypatch.setattr(http_reward, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setenv(SERVER_VARIABLE, "0.5 3")

    def made(*servers):
        from openrlhf.utils.agent import SingleTurnAgentExecutor

        return with_servers(SingleTurnAgentExecutor([getattr(one, "url", one) for one in servers]))

    return made


def rewards(executor, number=1):
    async def all_of_them():
        queries = [{"query": [str(n)], "prompts": ["p"], "labels": ["l"]} for n in range(number)]
        return [await executor.reward(query) for query in queries]

    return asyncio.run(all_of_them())


BAD = [
    503,
    500,
    429,
    404,
    "hang",
    "hang up",
    "not JSON",
    "",
    {"rewards": [None]},
    {"rewards": None},
    {"rewards": []},
    {"rewards": [1.0, 0.0]},
    {"rewards": ["1.0"]},
    '{"rewards": [NaN]}',
    '{"rewards": [Infinity]}',
    {"error": "overloaded"},
    [1.0],
    3,
    {"rewards": [1.0], "scores": [None]},
    {"rewards": [1.0], "scores": [1.0, 2.0]},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_queries_are_retried_then_the_rollout_fails(bad, serve, agent):
    from openrlhf_ktae.verifier.http_reward import BadAnswer

    server = serve(bad, bad, GOOD)
    assert rewards(agent(server)) == [{"reward": 0.75, "scores": 0.75, "extra_logs": {}}]
    assert len(server.asked) == 3
    server = serve(GOOD, bad, bad, bad, GOOD)
    executor = agent(server)
    rewards(executor)
    began = time.monotonic()
    if bad in ("hang", "hang up"):
        executor._answered = began + 60  # as if another query had been answered, so the server is up
    with pytest.raises(BadAnswer, match=r"gave no reward in 3 tries, last error http://127.0.0.1:\d+/get_reward: "):
        rewards(executor)
    rewards(executor)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ({"rewards": 1}, {"reward": 1.0, "scores": 1.0, "extra_logs": {}}),
        ({"rewards": [[0.5]], "scores": 1}, {"reward": 0.5, "scores": 1.0, "extra_logs": {}}),
        ({"rewards": [0], "scores": None}, {"reward": 0.0, "scores": 0.0, "extra_logs": {}}),
        (
            {"rewards": [1], "extra_logs": {"a": [2], "b": "x"}},
            {"reward": 1.0, "scores": 1.0, "extra_logs": {"a": 2.0}},
        ),
        ({"rewards": [1], "extra_logs": None}, {"reward": 1.0, "scores": 1.0, "extra_logs": {}}),
    ],
)
def test_answers_of_servers(answer, read, serve, agent):
    assert rewards(agent(serve(answer))) == [read]


def test_unreachable_servers_stop_the_run(serve, agent):
    first, second = serve(GOOD), serve(GOOD)
    executor = agent(first, second)
    rewards(executor, 2)
    assert len(first.asked) == len(second.asked) == 1
    for server in (first, second):
        server.stop()
    with pytest.raises(TrainingStopped) as stop:
        rewards(executor)
    assert str(stop.value).startswith(f"--reward.remote_url {first.url},{second.url}: gives no rewards any more")
    assert "--resume auto" in str(stop.value)
    first.stop = second.stop = lambda: None


def test_another_server_is_queried_if_one_is_down(serve, agent):
    gone, there = serve(GOOD), serve(GOOD)
    executor = agent(gone, there)
    gone.stop()
    gone.stop = lambda: None
    assert len(rewards(executor, 4)) == 4
    assert len(there.asked) == 4


def test_a_server_that_returns_no_rewards_stops_the_run(serve, agent, monkeypatch):
    from openrlhf_ktae.verifier import http_reward

    monkeypatch.setattr(http_reward, "FAILED_IN_A_ROW", 3)
    executor = agent(serve(503))
    for _ in range(2):
        with pytest.raises(http_reward.BadAnswer):
            rewards(executor)
    with pytest.raises(TrainingStopped, match="HTTP 503"):
        rewards(executor)


def test_without_reward_servers_the_hosts_executor_is_kept(host):
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    from openrlhf_ktae.trainer.ray.vllm_engine import with_servers

    for urls in (None, []):
        executor = SingleTurnAgentExecutor(urls)
        assert with_servers(executor) is executor


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (GOOD, ""),
        (503, ""),
        ({"error": "no"}, ""),
        (404, "with 404"),
        (405, "with 405"),
        (403, "with 403"),
        ("hang up", ""),
    ],
)
def test_a_server_must_answer_before_the_run(answer, reason, serve):
    server = serve(answer)
    found = _unanswered(server.url)
    assert reason in found and bool(found) == bool(reason)
    assert server.asked == [{"query": [""], "prompts": [""], "labels": [""]}]


def test_before_the_run_a_dead_server_is_refused_within_seconds(serve):
    server = serve(GOOD)
    server.stop()
    server.stop = lambda: None
    began = time.monotonic()
    assert "nothing answers there" in _unanswered(server.url)
    assert time.monotonic() - began < 5


def test_passwords_in_urls_are_masked(serve, agent):
    server = serve(404)
    url = server.url.replace("http://", "http://me:SECRET@")
    executor = agent(url)
    with pytest.raises(Exception, match=r"\*\*\*@127") as error:
        rewards(executor)
    assert "SECRET" not in str(error.value)


def test_options_reach_the_engines():
    from types import SimpleNamespace

    from openrlhf_ktae.backend import resolve
    from openrlhf_ktae.backend.cluster import environment
    from openrlhf_ktae.base.faults_config import FaultsConfig

    config = FaultsConfig(reward_tries=2, reward_timeout_s=7.5)
    args = SimpleNamespace(
        verifier=SimpleNamespace(enable=False),
        faults=SimpleNamespace(config=config),
        model=SimpleNamespace(trust_remote_code=False),
        ds=SimpleNamespace(param_dtype="fp32"),
    )
    backend = SimpleNamespace(environment=lambda _: {}, worker_setup_hook=resolve("cpu").worker_setup_hook)
    assert environment(args, backend)[SERVER_VARIABLE] == "7.5 2"
