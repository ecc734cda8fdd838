#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A service on a UNIX datagram socket: counts who is there, and sends every
message back to all who are, in capitals.

    wspush serve --service count=unix:/run/wspush/count.sock
    count.py /run/wspush/count.sock [/run/wspush/push.sock]

An event is one datagram: a header line, a line feed, the body.
"""
import os
import socket
import sys

path = sys.argv[1]
push = sys.argv[2] if len(sys.argv) > 2 else "/run/wspush/push.sock"

if os.path.exists(path):
    os.unlink(path)
inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
inbox.bind(path)
here = set()

while True:
    header, _, body = inbox.recv(1 << 20).partition(b"\n")
    event, who, *rest = header.decode().split(" ")
    if event == "open":
        here.add(who)
        body = b"%d here" % len(here)
    elif event == "close":
        here.discard(who)
        body = b"%d here" % len(here)
    elif rest == ["text"]:
        body = body.decode().upper().encode()
    else:
        continue
    service = who.split("/")[2].split("-")[0]  # names have no "-"
    try:
        inbox.sendto(b"send /services/%s\n%s" % (service.encode(), body), push)
    except OSError as error:
        print(f"push socket: {error}", file=sys.stderr)
