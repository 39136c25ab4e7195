# A module that is no stream does not keep the server from starting: the store is empty, and the console says why.
# nested-xen: --stream "$repository/README.md"
. /lib/nested.sh

ours "a start with a bad module" || finish

says_why() { server_console | grep -q '^the module of [0-9]* bytes is not taken over: byte 0: this is no xenstore stream; the store starts empty$'; }

check "the console says why" wait_for 20 says_why
server_console | sed 's/^/        /'
check "dom0's tools write" xenstore-write /new x
equal "dom0's tools read" x "$(xenstore-read /new)"
sound "check"
finish
