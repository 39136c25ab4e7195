# The server begins with a stream that C xenstored 4.17 wrote on real Xen (tests/nested/exchange.sh made it), shows the
# same tree as that one did, serves dom0 and guests, and saves a stream of its own.
# nested-xen: --stream "$repository/tests/streams/real-c-4.17-without-guest.bin" --add "$repository/tests/streams/real-c-4.17-without-guest.ls:/nested/before.ls"
. /lib/nested.sh

ours "a start from a stream" || finish

took_over() { server_console | grep -q "^took over $1 nodes"; }
tree() { xenstore-ls -fp / | sed 's/ *$//'; }
# print_file NAME FILE: on the host, sed -n 's/^NAME| //p' | base64 -d | gunzip makes it a file again.
print_file() { gzip -9c "$2" | base64 | sed "s/^/$1| /"; }

step "what C xenstored had is here"
check "it took over" wait_for 20 took_over 28
server_console | sed 's/^/        /'
tree >/run/now.ls
domid=$(server_domid)
# The set-up of this boot has written on top: about the server's domain.
grep -vxFf /run/now.ls /nested/before.ls >/run/missing
grep -vxFf /nested/before.ls /run/now.ls >/run/more
equal "every node, value and permission of the $(wc -l </nested/before.ls)" "" "$(cat /run/missing)"
equal "and besides only what this boot wrote" "" \
    "$(grep -v "^/tool/xenstored/domid \|^/local/domain/$domid[ /]\|^/local/domain/0/backend\( \|/console \|/console/$domid[ /]\)" /run/more)"
sed 's/^/        /' /run/more
grep '^/exchange' /nested/before.ls >/run/before.order
grep '^/exchange' /run/now.ls >/run/now.order
check "/exchange with its children in their order" cmp /run/before.order /run/now.order
sound "check"

step "it serves"
check "dom0's tools write" xenstore-write /exchange/new x
equal "dom0's tools read" x "$(xenstore-read /exchange/new)"
xenstore-rm /exchange/new
make_guest linux
check "a Linux guest" start_guest linux
check "it writes" guest_run linux 'xenstore-write data/own 1 && xenstore-read data/own'
tree >/run/guest.ls

step "a stream of its own"
check "save-store" save-store /run/with-guest.stream
tree >/run/guest-after.ls
check "that changes nothing" cmp /run/guest.ls /run/guest-after.ls
echo "        $(wc -c </run/with-guest.stream) bytes, $(wc -l </run/guest.ls) nodes"
check "version 2" save-store -v 2 /run/two.stream
refuse "no version 3" save-store -v 3 /run/three.stream
sed 's/^/        /' /run/check.log
refuse "no half a file" test -e /run/three.stream -o -e /run/three.stream.part
check "live update" xenstore-control live-update /nested/image
check "the successor saves the same" save-store /run/again.stream
equal "of the same length" "$(wc -c </run/with-guest.stream)" "$(wc -c </run/again.stream)"
check "the guest is told to go" xl shutdown -w linux
check "it is gone" wait_gone linux
tree >/run/saved.ls
check "save-store without a guest" save-store /run/saved.stream
print_file ours.stream /run/saved.stream
print_file ours.ls /run/saved.ls
finish
