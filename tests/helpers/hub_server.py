"""Serve a hub on the loopback interface for the real huggingface_hub client, with repositories in memory.

It answers create_repo, create_commit (preupload, LFS, commit), model_info, snapshot_download, from_pretrained and
load_dataset, keeps every request, and fails when a test asks it to.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin")


@dataclass
class Repository:
    """Hold a repository of files in memory. A branch points to a commit, and a commit has all files by path."""

    kind: str
    name: str
    private: bool = False
    branches: dict = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict = field(default_factory=lambda: {"0" * 40: {}})

    def commit(self, branch, files):
        files = self.commits[self.branches[branch]] | files  # A file that is None is deleted.
        files = {path: content for path, content in files.items() if content is not None}
        sha = hashlib.sha1(f"{self.name} {branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def files(self, branch="main"):
        return self.commits[self.branches[branch]]


@dataclass
class Request:
    method: str
    path: str
    headers: dict
    body: bytes


@dataclass
class Failure:
    """Answer the next `times` requests whose `METHOD path` matches with `status`, or cut the connection."""

    pattern: str
    status: int | str
    times: int
    headers: dict


class HubServer(ThreadingHTTPServer):
    """Serve at `hub.url` within `with HubServer({"hf_token": "user"}) as hub:`."""

    daemon_threads = True

    def __init__(self, tokens):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = tokens
        self.lock = threading.Lock()
        self.repositories = {}
        self.objects = {}
        self.requests = []
        self.failures = []
        self.url = f"http://localhost:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def add(self, name, files, kind="models", private=False):
        repository = self.repositories[kind, name] = Repository(kind, name, private)
        repository.commit("main", files)
        return repository

    def files(self, name, branch="main"):
        return self.repositories["models", name].files(branch)

    def fail(self, pattern, status, times=1, **headers):
        self.failures.append(Failure(pattern, status, times, headers))

    def asked(self, pattern):
        return [request for request in self.requests if re.search(pattern, f"{request.method} {request.path}")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/?(?P<path>.*)", "tree"),
        ("GET", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
        ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "lfs_put"),
        ("POST", r"/lfs/verify", "lfs_verify"),
        ("HEAD", r"/((?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/((?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def handle_request(self):
        url = urlsplit(self.path)
        failure = self.find_failure(f"{self.command} {unquote(url.path)}")
        if failure:
            failure.times -= 1
        if failure and failure.status == "cut":
            self.rfile.read(min(int(self.headers.get("Content-Length", 0)) // 2, 100))
            return self.cut()
        request = Request(self.command, unquote(url.path), dict(self.headers), self.read_body())
        self.server.requests.append(request)
        self.mute = failure is not None and failure.status == "cut after"
        if failure and not self.mute:
            return self.answer({"error": "asked to fail"}, failure.status, **failure.headers)
        for method, pattern, action in self.ROUTES:
            match = re.fullmatch(pattern, url.path) if method == self.command else None
            if match:
                values = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                with self.server.lock:
                    return getattr(self, action)(request, **values)
        self.answer({"error": "no such endpoint"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def find_failure(self, request):
        for failure in self.server.failures:
            if failure.times and re.search(failure.pattern, request):
                return failure
        return None

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        size = int(self.rfile.readline(), 16)
        while size:
            body += self.rfile.read(size)
            self.rfile.readline()
            size = int(self.rfile.readline(), 16)
        self.rfile.readline()
        return body

    def answer(self, value, status=200, body=None, **headers):
        if self.mute:
            return self.cut()
        body = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for name, text in ({"Content-Length": len(body), "Content-Type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self):
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_):
        pass

    mute = False

    # These find the user, the repository and the commit.

    def user(self):
        return self.server.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def writable(self, owner):
        """Return whether this user may write to the repository. Send an error if not."""
        if self.user() is None:
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.user() != owner:
            self.answer({"error": f"You don't have the rights to write to {owner}"}, 403)
        return self.user() == owner

    def visible(self, name, kind="models", revision="main"):
        """Return the repository and the commit, if this user may see them. Send an error if not."""
        repository = self.server.repositories.get((kind, name))
        if repository is None or (repository.private and self.user() != name.split("/")[0]):
            self.answer({"error": "Repository not found"}, 404 if self.user() else 401, X_Error_Code="RepoNotFound")
            return None, None
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return None, None
        return repository, sha

    # These write to repositories.

    def whoami(self, request):
        if self.user():
            self.answer({"type": "user", "name": self.user(), "orgs": [], "auth": {}})
        else:
            self.answer({"error": "Invalid user token."}, 401)

    def create(self, request):
        settings = json.loads(request.body)
        owner = settings["organization"] or self.user()
        kind = f"{settings.get('type') or 'model'}s"
        if not self.writable(owner):
            return
        name = f"{owner}/{settings['name']}"
        url = f"{self.server.url}/{name}" if kind == "models" else f"{self.server.url}/{kind}/{name}"
        exists = (kind, name) in self.server.repositories
        if not exists:
            private = settings.get("visibility") == "private"
            self.server.repositories[kind, name] = Repository(kind, name, private)
        self.answer({"url": url, "name": name, "id": name}, 409 if exists else 200)

    def validate(self, request):
        self.answer({"errors": [], "warnings": []})

    def branch(self, request, kind, name, revision):
        repository, sha = self.visible(name, kind)
        if repository is None or not self.writable(name.split("/")[0]):
            return
        status = 409 if revision in repository.branches else 200
        repository.branches.setdefault(revision, sha)
        self.answer({}, status)

    def preupload(self, request, kind, name, revision):
        repository, sha = self.visible(name, kind, revision)
        if repository is None or not self.writable(name.split("/")[0]):
            return
        files = repository.commits[sha]
        self.answer(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                    }
                    | ({"oid": oid(file["path"], files[file["path"]])} if file["path"] in files else {})
                    for file in json.loads(request.body)["files"]
                ]
            }
        )

    def lfs_batch(self, request, name):
        if not self.writable(name.split("/")[0]):
            return
        objects = json.loads(request.body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.objects:
                upload, verify = f"{self.server.url}/lfs/{item['oid']}", f"{self.server.url}/lfs/verify"
                item["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, request, oid):
        if hashlib.sha256(request.body).hexdigest() != oid:
            return self.answer({"error": "another hash"}, 422)
        self.server.objects[oid] = request.body
        self.answer({})

    def lfs_verify(self, request):
        item = json.loads(request.body)
        self.answer({}, 200 if len(self.server.objects.get(item["oid"], b"")) == item["size"] else 404)

    def commit(self, request, kind, name, revision):
        repository, sha = self.visible(name, kind, revision)
        if repository is None or not self.writable(name.split("/")[0]):
            return
        header, *operations = [json.loads(line) for line in request.body.splitlines()]
        if header["value"].get("parentCommit", sha) != sha:
            return self.answer({"error": "the branch has moved"}, 412)
        files = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                files[value["path"]] = None
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        new = repository.commit(revision, files)
        self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{new}", "commitOid": new})

    # These read from repositories.

    def info(self, request, kind, name, revision="main"):
        repository, sha = self.visible(name, kind, revision)
        if repository:
            siblings = [{"rfilename": path} for path in repository.commits[sha]]
            facts = {"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
            self.answer(facts)

    def tree(self, request, kind, name, revision, path=""):
        repository, sha = self.visible(name, kind, revision)
        if repository is None:
            return
        recursive = parse_qs(urlsplit(self.path).query).get("recursive") in (["True"], ["true"])
        folder = f"{path}/" if path else ""
        files = {name: data for name, data in repository.commits[sha].items() if name.startswith(folder)}
        if not recursive:
            files = {name: data for name, data in files.items() if "/" not in name.removeprefix(folder)}
        if path and not files:
            return self.answer({"error": "no such folder"}, 404, X_Error_Code="EntryNotFound")
        self.answer([entry(name, data) for name, data in files.items()])

    def paths_info(self, request, kind, name, revision):
        repository, sha = self.visible(name, kind, revision)
        if repository:
            files = repository.commits[sha]
            entries = []
            for path in parse_qs(request.body.decode())["paths"]:
                if path in files:
                    entries.append(entry(path, files[path]))
                elif any(name.startswith(f"{path}/") for name in files):
                    entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
            self.answer(entries)

    def resolve(self, request, name, revision, path, kind="models"):
        repository, sha = self.visible(name, kind, revision)
        if repository is None:
            return
        data = repository.commits[sha].get(path)
        if data is None:
            return self.answer({"error": "no such file"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        begin = int(re.sub(r"\D", "", self.headers.get("Range", "0").split("-")[0]) or 0)
        end = int((re.findall(r"-(\d+)", self.headers.get("Range", "")) or [len(data) - 1])[0]) + 1
        headers = {"ETag": f'"{oid(path, data)}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        if "Range" in self.headers:
            headers["Content_Range"] = f"bytes {begin}-{min(end, len(data)) - 1}/{len(data)}"
        self.answer(None, 206 if "Range" in self.headers else 200, data[begin:end], **headers)


def oid(path, data):
    """Return the name of this content in git, or in LFS for a large file."""
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(path, data):
    large = {"oid": oid(path, data), "size": len(data), "pointerSize": 134}
    lfs = {"lfs": large} if path.endswith(LFS_SUFFIXES) else {}
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} | lfs
