# The record stream in both directions: a dump that C xenstored wrote for its own live update, and a stream of ours
# that the same program takes over.
# nested-xen: --server xenstored --add "$repository/tests/streams/real-ours.bin:/nested/ours.stream" --add "$repository/tests/streams/real-ours.ls:/nested/ours.ls"
. /lib/nested.sh

[ "$server" = xenstored ] || {
    skip "streams of C xenstored (not with $server)"
    finish
}
# C xenstored executes its successor with the state in a file. A program in the successor's place can look at that file,
# and exchange it.
successor() {
    {
        echo '#!/bin/sh'
        # Where the distribution keeps what its daemon leaves behind.
        echo 'state=$(ls /var/run/xenstored/state_dump /var/lib/xenstored/state_dump 2>/dev/null | head -n 1)'
        echo "$1"
        echo 'touch /run/executed'
        echo 'exec xenstored "$@"'
    } >/run/successor
    chmod +x /run/successor
}
tree() { xenstore-ls -fp / | sed 's/ *$//'; }
# print_file NAME FILE: on the host, sed -n 's/^NAME| //p' | base64 -d | gunzip makes it a file again.
print_file() { gzip -9c "$2" | base64 | sed "s/^/$1| /"; }

# take NAME: the state as C xenstored writes it down, and the tree as it shows it.
take() {
    tree >"/run/$1.ls"
    successor "cp \$state /run/$1.stream"
    check "$1: live update of C xenstored" xenstore-control live-update /run/successor
    check "$1: there is a stream" test -s "/run/$1.stream"
    tree >/run/after.ls
    check "$1: C xenstored has taken it over itself" cmp "/run/$1.ls" /run/after.ls
    echo "        $(wc -c <"/run/$1.stream") bytes, $(wc -l <"/run/$1.ls") nodes"
    print_file "$1.stream" "/run/$1.stream"
    print_file "$1.ls" "/run/$1.ls"
}

step "what C xenstored writes"
xenstore-write /exchange/value 'a value with "quotes", \ and an umlaut: ä' /exchange/empty '' /exchange/deep/er/still there
xenstore-write /exchange/binary "$(printf 'a\001b\tc\nd\377')" /exchange/long "$(seq -s , 700)"
xenstore-chmod /exchange/deep r0 w0
xenstore-chmod /exchange/deep/er n0 r0 b0
xenstore-watch /exchange/watched >/run/watched.log 2>&1 &
make_guest linux
check "a Linux guest" start_guest linux
domid=$(guest_domid linux)
xenstore-write "/local/domain/$domid/data/given" "to the guest"
xenstore-write /exchange/shared x
xenstore-chmod /exchange/shared n0 "r$domid"
check "the guest writes, too" guest_run linux 'xenstore-write data/own "from the guest"'
check "the guest watches" guest_run linux 'xenstore-watch data/own memory/target >/dev/null 2>&1 &'
take with-guest
check "the guest goes on" guest_run linux 'xenstore-read data/own data/given'
check "the guest is told to go" xl shutdown -w linux
check "it is gone" wait_gone linux
take without-guest

# A stream names a daemon's open files and ports, which ours does not have: these come from the running
# daemon's own. The places of the numbers are those of docs/designs/xenstore-migration.md.
number() { od -A n -t u4 -j "$2" -N 4 "$1" | tr -d ' '; }
patch_stream() {
    ours=/run/ours.stream theirs=$1
    cp /nested/ours.stream $ours
    # GLOBAL_DATA, the first record of both: socket and event channels.
    [ "$(number $ours 16) $(number $ours 20) $(number "$theirs" 16) $(number "$theirs" 20)" = "1 8 1 8" ] || return
    dd if="$theirs" of=$ours bs=1 skip=24 seek=24 count=8 conv=notrunc 2>/dev/null
    # Limits, which 4.17 does not know, then the connection of domain 0 in both: its port.
    [ "$(number $ours 32)" = 6 ] || return
    at=$((40 + $(number $ours 36)))
    [ "$(number $ours $at) $(number "$theirs" 32)" = "2 2" ] || return
    dd if="$theirs" of=$ours bs=1 skip=52 seek=$((at + 20)) count=4 conv=notrunc 2>/dev/null
    echo "        socket $(number $ours 24), event channels $(number $ours 28), port $(number $ours $((at + 20)))"
}

step "what C xenstored makes of a stream of ours"
check "its own files and port are put in" patch_stream /run/without-guest.stream
cat /run/check.log
before=$(pidof xenstored)
rm -f /run/executed
successor "cp /run/ours.stream \$state"
# Whoever asks has a connection that is not in that stream, and gets no answer.
xenstore-control live-update /run/successor >/run/update.log 2>&1 &
asker=$!
check "it is executed" wait_for 20 test -e /run/executed
check "the store answers" wait_for 20 xenstore-exists /tool
kill $asker 2>/dev/null
equal "it is the same process" "$before" "$(pidof xenstored)"
tree >/run/theirs.ls
check "the same tree as ours had" cmp /nested/ours.ls /run/theirs.ls
diff /nested/ours.ls /run/theirs.ls | cut -c 1-120
echo "        $(wc -l </run/theirs.ls) nodes"
sound "its own check"
check "its tools write" xenstore-write /exchange/new x
equal "its tools read" x "$(xenstore-read /exchange/new)"
equal "dom0's kernel reads by its ring" x "$(raw_request 2 '/exchange/new\0')"
check "it removes" xenstore-rm /exchange/new
# Because of this node, xenstore-control would take it for a stub domain and send it the file.
check "it is no stub domain" xenstore-rm /tool/xenstored/domid
check "it updates itself from that" xenstore-control live-update /xen-tools/xenstored
tree >/run/again.ls
grep -v '^/tool/xenstored/domid ' /nested/ours.ls >/run/expected.ls
check "the same tree again" cmp /run/expected.ls /run/again.ls
finish
