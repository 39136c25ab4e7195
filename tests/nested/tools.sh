# The tools that show the store: top, metrics and tree, over dom0's ring, beside a guest that runs and gets a name that
# would break a terminal.
# nested-xen: --timeout 900
. /lib/nested.sh
tools=/usr/bin/xenstore-tools

# column NAME N: a column of a domain's line in what top has written last.
column() { awk -v name="$1" -v n="$2" '$2 == name { print $n }' /run/top; }

# Anything but printable characters and the ends of lines.
is_plain() { [ -s "$1" ] && ! LC_ALL=C grep -q '[^ -~]' "$1"; }

# keep FILE ARGUMENT...: what the tools write.
keep() {
    file=$1
    shift
    timeout 60 $tools "$@" >"$file"
}

ours "top, metrics and tree" || finish
[ -x $tools ] || { fail "there is no $tools: cargo tools builds it" && finish; }
make_guest linux
check "a Linux guest comes up" start_guest linux
domid=$(guest_domid linux)

step "top"
check "top --batch" keep /run/top top --batch -n 1
sed 's/^/  /' /run/top
equal "it has dom0 and the guest" "0 $domid" \
    "$(awk '$1 == 0 { print $1 }' /run/top) $(column linux 1)"
equal "the guest is served" ok "$(column linux 10)"
check "the guest has nodes" [ "$(column linux 5)" -gt 0 ]
before=$(xenstore-control stats --values | sed -n 's/^requests=//p')
check "five looks" keep /run/top top --batch -n 5
after=$(xenstore-control stats --values | sed -n 's/^requests=//p')
echo "requests meanwhile: $((after - before))"
# Six looks, the names of a few domains, the two of this test, and what the toolstack does by itself.
check "they cost few requests" [ $((after - before)) -lt 60 ]
refuse "without a terminal there is no screen" $tools top

step "a name that would break a terminal"
xenstore-write "/local/domain/$domid/name" "$(printf '\033[2J\007evil\nname')"
check "top --batch, again" keep /run/top top --batch -n 1
check "it writes plain text" is_plain /run/top
check "and shows the name as it is" grep -qF '\x1b[2J\x07evi~' /run/top
check "metrics" keep /run/metrics metrics
check "they are plain text, too" is_plain /run/metrics
xenstore-write "/local/domain/$domid/name" linux

step "metrics"
sed -n '/^xenstore_\(up\|build\|requests\|memory\|nodes\|live\|rest\)/s/^/  /p' /run/metrics
equal "the store is up" "xenstore_up 1" "$(grep '^xenstore_up ' /run/metrics)"
check "every domain has its requests" grep -q "^xenstore_domain_requests_total{domid=\"$domid\"" /run/metrics
$tools metrics --listen 127.0.0.1:9151 2>/run/listen.log &
listener=$!
scrape() { wget -q -O /run/scrape http://127.0.0.1:9151/metrics; }
if ip link set lo up 2>/dev/null || ifconfig lo 127.0.0.1 up 2>/dev/null; then
    up() { scrape && grep -q '^xenstore_up 1' /run/scrape; }
    check "a scrape finds it up" wait_for 30 up
else
    skip "a scrape over the network: dom0 has no loopback device"
fi
kill $listener

step "tree"
check "tree of the guest" keep /run/tree tree --depth 1 "/local/domain/$domid"
sed 's/^/  /' /run/tree
check "it has the owner" grep -q "^/local/domain/$domid  (owner 0, $domid may read)" /run/tree
check "and values" grep -q 'name = "linux"' /run/tree
check "tree --watches" keep /run/tree tree --watches /tool
check "a saved store" save-store /run/saved
check "looks like it" keep /run/tree tree --from /run/saved "/local/domain/$domid"
check "name and all" grep -q 'name = "linux"' /run/tree
finish
