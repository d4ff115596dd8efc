"""A real SMTP server (aiosmtpd) that writes what it received to a file, one JSON object per line.

The file of the mode is read before every reply, so that a test can change the manner of a running
server. Modes: accept, refuse (550), defer (451), black-hole (never answers), hang-up (takes the
content and closes without a reply). A recipient whose name begins with `poison` is always refused,
and one whose name begins with `stuck` gets no answer.
"""

import argparse
import asyncio
import email
import email.policy
import json
import ssl
import sys
import time

from aiosmtpd.smtp import SMTP, AuthResult


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--output", required=True, help="file for the received messages")
    parser.add_argument("--mode-file", required=True, help="file that holds the mode")
    parser.add_argument("--cert", help="certificate chain in PEM; STARTTLS is then required")
    parser.add_argument("--key", help="private key in PEM")
    parser.add_argument("--tls", action="store_true", help="TLS from the start, no STARTTLS")
    parser.add_argument("--user", help="user name; AUTH is then required")
    parser.add_argument("--password", help="password of the user")
    return parser.parse_args()


class Handler:
    def __init__(self, options):
        self.options = options

    def mode(self):
        with open(self.options.mode_file, encoding="ascii") as file:
            return file.read().strip()

    async def hold(self):
        while True:
            await asyncio.sleep(3600)

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        mode = self.mode()
        if mode == "refuse" or address.startswith("poison"):
            return f"550 5.1.1 <{address}> is not known here"
        if mode == "defer":
            return f"451 4.3.0 <{address}> later, please"
        if address.startswith("stuck"):
            await self.hold()
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)

        def part(kind):
            found = message.get_body(preferencelist=(kind,))
            return found.get_content() if found is not None else None

        record = {
            "at": time.time(),
            "peer": session.peer[0],
            "hello": session.host_name,
            "tls": session.ssl is not None or self.options.tls,
            "user": (session.auth_data or b"").decode() if session.authenticated else None,
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "headers": [[name, str(value)] for name, value in message.items()],
            "content_type": message.get_content_type(),
            "text": part("plain"),
            "html": part("html"),
            "raw": envelope.content.decode("utf-8", "replace"),
            "defects": [str(defect) for defect in message.defects],
            "mode": self.mode(),
        }
        with open(self.options.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if record["mode"] == "hang-up":
            server.transport.abort()
            await self.hold()
        return "250 2.0.0 OK"


class Server(SMTP):
    """Answers nothing at all while the mode is black-hole."""

    async def _handle_client(self):
        if self.event_handler.mode() == "black-hole":
            await self.event_handler.hold()
        await super()._handle_client()


def tls_context(options):
    if not options.cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.cert, options.key)
    return context


async def main():
    options = arguments()
    context = tls_context(options)
    starttls = context if context and not options.tls else None

    def authenticate(server, session, envelope, mechanism, data):
        good = (
            data.login.decode() == options.user and data.password.decode() == options.password
        )
        return AuthResult(success=good, handled=False, auth_data=data.login)

    def factory():
        return Server(
            Handler(options),
            enable_SMTPUTF8=True,
            tls_context=starttls,
            require_starttls=starttls is not None,
            auth_required=options.user is not None,
            auth_require_tls=context is not None and not options.tls,
            authenticator=authenticate if options.user else None,
            ident="peer",
        )

    server = await asyncio.get_running_loop().create_server(
        factory, "127.0.0.1", options.port, ssl=context if options.tls else None
    )
    print("ready", file=sys.stderr, flush=True)
    async with server:
        await server.serve_forever()


asyncio.run(main())
