"""A server of OpenAI's API in a thread: it answers with a word of the prompt, and keeps what it was sent."""

import contextlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PLACE = re.compile(r"lives in (\w+)\.")


class Server(ThreadingHTTPServer):
    """A server whose answers a test may change.

    Attributes:
        requests: the path, the Authorization header and the body of every request.
        busy: the number of requests that are still refused with `status`.
        answer: a function from a body to the parts of a choice that differ from an ordinary answer.
        content: what every request is answered with, instead of an answer.
        headers: further headers of every answer.
        stream: the parts of the body of an error, which is sent without its length.
        most_at_once: the most requests that were handled at the same time.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.busy, self.status, self.most_at_once, self.at_once = [], 0, 503, 0, 0
        self.error = {"message": "busy"}
        self.answer = lambda body: {}
        self.content, self.headers, self.stream = None, {}, ()
        self.lock = threading.Lock()
        self.wait = threading.Event()
        self.wait.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def bodies(self):
        return [body for _, _, body in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append((self.path, self.headers["Authorization"], body))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            busy = server.busy > 0
            server.busy -= busy
        server.wait.wait(10)
        with server.lock:
            server.at_once -= 1
        if busy and server.stream:
            self.send_response(server.status)
            self.end_headers()
            with contextlib.suppress(OSError):  # The client has enough.
                for part in server.stream:
                    self.wfile.write(part)
        elif busy:
            self.reply(server.status, {"error": server.error})
        else:
            content = server.content
            self.reply(200, whole_answer(body, server.answer(body)) if content is None else content)

    def reply(self, status, value):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Retry-After-Ms", "1")
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def prompt_of(body):
    return body["prompt"] if "prompt" in body else "\n".join(message["content"] for message in body["messages"])


def whole_answer(body, parts):
    """Return an answer as the API has it: by default the last place in the prompt."""
    places = PLACE.findall(prompt_of(body))
    text = parts.get("text", places[-1] if places else "nothing")
    choice = {"index": 0, "finish_reason": parts.get("finish_reason", "stop"), "logprobs": parts.get("logprobs")}
    if "messages" in body:
        choice["message"] = {"role": "assistant", "content": text, "refusal": parts.get("refusal")}
    else:
        choice["text"] = text
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    answer = {"id": "1", "object": "x", "created": 0, "model": "/models/served-7b", "system_fingerprint": "fp_1"}
    return answer | {"choices": [choice], "usage": parts.get("usage", usage)}


@contextmanager
def api_server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.wait.set()
        server.shutdown()
        server.server_close()
