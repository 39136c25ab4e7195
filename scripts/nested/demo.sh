# What scripts/demo shows, as a script for dom0.
# nested-xen: --memory 8 --timeout 600
. /lib/nested.sh

tell() { printf '\n# %s\n' "$*"; }

# show COMMAND: runs it as somebody at a prompt would.
show() {
    echo "$ $1"
    eval "$1" || { echo "this should have worked (status $?)" && exit 1; }
}

in_guest() {
    echo "guest$ $1"
    guest_run demo "$1"
}

tell "This is dom0, the first domain. No xenstore daemon runs in it: 'Xenstore' below is our stub domain."
show "xl list"
show "ps -o comm | grep -c '^xenstored' || true"

tell "It serves all of the host's control plane. The tools that Xen comes with see it as any other xenstore."
show "xenstore-ls"
show "xenstore-write /demo/greeting hello"
show "xenstore-read /demo/greeting"

tell "The stock toolstack creates a Linux guest. Some forty nodes tell its kernel what it has."
make_guest demo
show "cat /run/guests/demo.cfg"
show "xl create -q /run/guests/demo.cfg"
wait_until_ready demo 1 || { echo "the guest did not come up" && exit 1; }
show "xl list"
domid=$(guest_domid demo)
show "xenstore-ls /local/domain/$domid"

tell "Inside the guest, the same tools reach the same server through a shared page. Paths are the guest's own."
in_guest "xenstore-read name"
in_guest "xenstore-write data/answer 'written inside the guest'"

tell "What is not the guest's own is refused."
in_guest "xenstore-write /local/domain/0/name mine" && exit 1

tell "dom0 sees what the guest wrote."
show "xenstore-read /local/domain/$domid/data/answer"

tell "The server is replaced by a new image while the guest runs. Nothing is lost, and nobody waits for longer than this:"
show "xenstore-control live-update /nested/image"
wait_for 20 eval "server_console | grep -q 'took over [0-9]'"
show "grep -a 'took over' $logs/guest-Xenstore.log"
show "xenstore-read /local/domain/$domid/data/answer"
in_guest "xenstore-write data/answer 'and after the update'"
show "xenstore-read /local/domain/$domid/data/answer"

tell "An image that is not fit is refused, and the server goes on."
echo "$ xenstore-control live-update /guest/kernel"
xenstore-control live-update /guest/kernel && exit 1

tell "The guest is asked through the store to shut down; afterwards nothing of it is left in there."
show "xl shutdown demo"
wait_gone demo || { echo "the guest did not go" && exit 1; }
show "xl list"
show "xenstore-list /local/domain"
