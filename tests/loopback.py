"""A Hugging Face Hub and a plain file server on loopback, which fail as they are told to.

`ROOT/hub/OWNER/NAME/` are model repositories, `ROOT/files/` are plain files. Requests that the client libraries do not
need are answered with 404. A repository has one revision, named by its content. Every upload is part of a commit.
"""
import base64
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Loopback(ThreadingHTTPServer):
    """The server; use it in a `with` statement.

    Attributes:
        url: Its address.
        hub: Folder of the Hub's repositories.
        files: Folder of the plain files, under the address `/files/`.
        faults: What is wrong with the 'hub' or the 'files': 'private', 'foreign' (not a Hub), 'down', 'cut' (bodies of
            weights end in the middle), 'cut once', 'slow' (they stop there), 'late' (the first answer takes a second).
        log: Method and path of every request.
        half_sent: Set when a 'slow' body stops.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.url = f'http://127.0.0.1:{self.server_address[1]}'
        self.hub, self.files = root / 'hub', root / 'files'
        self.hub.mkdir()
        self.files.mkdir()
        self.faults: dict[str, str] = {}
        self.log: list[str] = []
        self.half_sent = threading.Event()

    def __enter__(self) -> 'Loopback':
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()

    def revision(self, repo_id: str) -> str:
        """Return the revision of a repository of the Hub."""
        digest = hashlib.sha1()
        for file in sorted((self.hub / repo_id).rglob('*')):
            digest.update(file.name.encode() + (file.read_bytes() if file.is_file() else b''))
        return digest.hexdigest()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that went away, as in tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    server: Loopback

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, content: object = b'', **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {'Content_Length': str(len(body)), **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.send_body(body)

    def send_body(self, body: bytes) -> None:
        side = 'files' if self.path.startswith('/files/') else 'hub'
        fault = self.server.faults.get(side, '')
        if self.command != 'GET' or len(body) < 1 << 20 or fault not in ('cut', 'cut once', 'slow'):
            self.wfile.write(body)
            return
        self.wfile.write(body[:len(body) // 2])
        self.wfile.flush()
        if fault == 'cut once':
            self.server.faults[side] = ''
        if fault == 'slow':
            self.server.half_sent.set()
            self.rfile.read(1)  # until the client goes away
        self.close_connection = True

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        self.answer(status, {'error': message}, X_Error_Code=code, X_Error_Message=message, **headers)

    def do_GET(self) -> None:
        if self.server.faults.get('hub') == 'late':
            time.sleep(1)
            self.server.faults['hub'] = ''
        path = unquote(urlsplit(self.path).path).strip('/')
        self.server.log.append(f'{self.command} /{path}')
        if path.startswith('files/'):
            file = self.server.files / path.removeprefix('files/')
            if self.server.faults.get('files') == 'down':
                self.answer(503)
            else:
                self.answer(200, file.read_bytes()) if file.is_file() else self.answer(404)
        elif path.startswith('api/models/'):
            repo_id = '/'.join(path.split('/')[2:4])
            if not self.has_fault(repo_id):
                self.answer(200, self.info(repo_id))
        elif '/resolve/' in path:
            repo_id, _, rest = path.partition('/resolve/')
            if not self.has_fault(repo_id):
                self.resolve(repo_id, *rest.split('/', 1))
        else:
            self.answer(404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).strip('/')
        self.server.log.append(f'POST /{path}')
        body = self.rfile.read(int(self.headers['Content-Length']))
        if path == 'api/repos/create':
            request = json.loads(body)
            repo_id = f'{request.get("organization") or "user"}/{request["name"]}'
            existed = (self.server.hub / repo_id).exists()
            (self.server.hub / repo_id).mkdir(parents=True, exist_ok=True)
            self.answer(409 if existed else 200, {'url': f'{self.server.url}/{repo_id}', 'error': 'It exists.'})
        elif path == 'api/validate-yaml':
            self.answer(200, {'errors': [], 'warnings': []})
        elif path.endswith('/preupload/main'):
            self.answer(200, {'files': [
                {'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
                for file in json.loads(body)['files']]})
        elif path.endswith('/commit/main'):
            repo_id = '/'.join(path.split('/')[2:4])
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file':
                    file = self.server.hub / repo_id / line['value']['path']
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(line['value']['content']))
            revision = self.server.revision(repo_id)
            self.answer(200, {
                'success': True, 'commitOid': revision, 'commitUrl': f'{self.server.url}/{repo_id}/commit/{revision}'})
        else:
            self.answer(404)

    def has_fault(self, repo_id: str) -> bool:
        """Answer a request for a repository that does not exist or is unavailable."""
        fault = self.server.faults.get('hub')
        is_anonymous = 'authorization' not in {name.lower() for name in self.headers}
        if fault == 'down':
            self.answer(503)
        elif fault == 'foreign':
            self.answer(200, b'<html>Log in to this network</html>', ETag='"page"')
        elif not (self.server.hub / repo_id).is_dir() or (fault == 'private' and is_anonymous):
            # The Hub gives anonymous callers a bare 401, which its client takes for this only on https.
            self.refuse(401 if is_anonymous else 404, 'RepoNotFound', 'Repository not found')
        else:
            return False
        return True

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        commit, file = self.server.revision(repo_id), self.server.hub / repo_id / name
        if revision not in (commit, 'main'):
            self.refuse(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        elif not file.is_file():
            self.refuse(404, 'EntryNotFound', 'Entry not found', X_Repo_Commit=commit)
        else:
            content = file.read_bytes()
            self.answer(200, content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    def info(self, repo_id: str) -> dict[str, object]:
        files = sorted(f for f in (self.server.hub / repo_id).rglob('*') if f.is_file())
        return {
            'id': repo_id, 'sha': self.server.revision(repo_id), 'private': False, 'tags': ['timm'],
            'library_name': 'timm', 'pipeline_tag': 'image-classification',
            'siblings': [{'rfilename': str(f.relative_to(self.server.hub / repo_id))} for f in files],
        }
