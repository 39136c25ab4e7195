"""What pyxs, a client in pure Python, sees of the store: run in dom0 by toolstack.sh.

Each line says "ok WHAT" or "FAIL WHAT: WHY"; the last one is "done".
"""

import copy
import errno
import queue

from pyxs.client import Client, Monitor
from pyxs.exceptions import PyXSError

XENBUS = "/dev/xen/xenbus"


def equal(what, expected, actual):
    good = expected == actual
    print("ok " + what if good else "FAIL %s: expected %r, got %r" % (what, expected, actual), flush=True)


def refused(what, number, function, *arguments):
    try:
        result = function(*arguments)
        print("FAIL %s: not refused, but %r" % (what, result), flush=True)
    except PyXSError as error:
        equal(what, number, error.args[0])


def one_node(c):
    c.write(b"/pyxs/a", b"value")
    equal("read gives what write wrote", b"value", c.read(b"/pyxs/a"))
    c[b"/pyxs/a"] = b"a\0b"
    equal("a value may hold NUL", b"a\0b", c[b"/pyxs/a"])
    c.write(b"/pyxs/a", b"x" * 2000)
    equal("and 2000 bytes, more than the ring has", 2000, len(c.read(b"/pyxs/a")))
    refused("read of what is not there", errno.ENOENT, c.read, b"/pyxs/absent")
    equal("read with a default", b"no", c.read(b"/pyxs/absent", b"no"))
    equal("exists", (True, False), (c.exists(b"/pyxs/a"), c.exists(b"/pyxs/absent")))


def tree(c):
    c.mkdir(b"/pyxs/tree/deep/er")
    for name in (b"c", b"a", b"b"):
        c.write(b"/pyxs/tree/" + name, name)
    equal("list", [b"deep", b"c", b"a", b"b"], c.list(b"/pyxs/tree"))
    equal("mkdir makes parents, all empty", b"", c.read(b"/pyxs/tree/deep"))
    c.mkdir(b"/pyxs/tree/c")
    equal("mkdir leaves a value alone", b"c", c.read(b"/pyxs/tree/c"))
    paths = [path for path, _, _ in c.walk(b"/pyxs/tree")]
    equal("walk", [b"/pyxs/tree" + tail for tail in (b"", b"/deep", b"/deep/er", b"/c", b"/a", b"/b")], paths)
    c.delete(b"/pyxs/tree")
    equal("delete takes all below along", False, c.exists(b"/pyxs/tree/deep/er"))
    c.delete(b"/pyxs/tree")
    equal("delete of what is not there", False, c.exists(b"/pyxs/tree"))
    refused("delete where the parent is not there, either", errno.ENOENT, c.delete, b"/pyxs/tree/deep")


def permissions(c):
    c.write(b"/pyxs/p", b"")
    equal("a new node has its parent's permissions", c.get_perms(b"/pyxs"), c.get_perms(b"/pyxs/p"))
    c.set_perms(b"/pyxs/p", [b"n0", b"r7", b"w8", b"b9"])
    equal("set_perms", [b"n0", b"r7", b"w8", b"b9"], c.get_perms(b"/pyxs/p"))
    refused("set_perms of what is not there", errno.ENOENT, c.set_perms, b"/pyxs/absent", [b"n0"])


def transactions(c, other):
    c.transaction()
    c.write(b"/pyxs/t", b"1")
    equal("what a transaction wrote is seen inside", b"1", c.read(b"/pyxs/t"))
    equal("but not outside", False, other.exists(b"/pyxs/t"))
    equal("commit", True, c.commit())
    equal("then it is seen", b"1", other.read(b"/pyxs/t"))
    c.transaction()
    c.write(b"/pyxs/t", b"2")
    c.rollback()
    equal("rollback", b"1", c.read(b"/pyxs/t"))
    c.transaction()
    c.read(b"/pyxs/t")
    c.write(b"/pyxs/u", b"1")
    other.write(b"/pyxs/t", b"3")
    equal("a conflict is told by commit", False, c.commit())
    equal("and leaves nothing", (b"3", False), (c.read(b"/pyxs/t"), c.exists(b"/pyxs/u")))


def domains(c):
    equal("get_domain_path", b"/local/domain/7", c.get_domain_path(7))
    equal("is_domain_introduced", (True, False), (c.is_domain_introduced(0), c.is_domain_introduced(7)))


def watches(c, other):
    try:
        c.monitor()
        print("FAIL monitor refuses xenbus: it does not", flush=True)
    except PyXSError as error:
        # With older kernels the answers did not fit. What is behind it works with ours.
        equal("client.monitor() refuses xenbus by itself", UserWarning, error.args[1])
    monitor = Monitor(copy.copy(c))
    monitor.watch(b"/pyxs/w", b"token")

    def event():
        try:
            return tuple(monitor.events.get(timeout=20))
        except queue.Empty:
            return "nothing within 20 s"

    equal("watch: an event at once", (b"/pyxs/w", b"token"), event())
    other.write(b"/pyxs/w/below", b"1")
    equal("watch: an event for another's write", (b"/pyxs/w/below", b"token"), event())
    monitor.unwatch(b"/pyxs/w", b"token")
    other.write(b"/pyxs/w/below", b"2")
    other.read(b"/pyxs/w/below")
    equal("unwatch", True, monitor.events.empty())


with Client(xen_bus_path=XENBUS) as c, Client(xen_bus_path=XENBUS) as other:
    one_node(c)
    tree(c)
    permissions(c)
    transactions(c, other)
    domains(c)
    watches(c, other)
    c.delete(b"/pyxs")
    equal("nothing is left", False, other.exists(b"/pyxs"))
print("done", flush=True)
