# What scripts/bench runs in dom0: one case against one server, named in /nested/bench.
# nested-xen: --timeout 3600
. /lib/nested.sh
. /nested/bench # case, rounds, bench_server
chmod +x /nested/bench-client

if [ "$bench_server" = null ]; then
    init-xenstore-domain --kernel /nested/null-responder --memory 8 || exit 1
fi

case $case in
*) /nested/bench-client "$bench_server" dom0 "$rounds" "$case" ;;
esac
