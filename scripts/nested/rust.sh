# Makes sure of a Rust that can build this package, on the host and for the bare target. Sourced after
# setup.sh. A Rust that is there is used as it is. Only what is missing is added, with a message.

target=x86_64-unknown-none
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repository/Cargo.toml")
[ ! -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] || PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH

# recent_enough VERSION: not older than what Cargo.toml asks for.
recent_enough() { [ -n "$1" ] && [ "$(printf '%s\n' "$wanted" "$1" | sort -V | head -n 1)" = "$wanted" ]; }

# Prints nothing if there is no cargo, or a rustup without a toolchain; that is no failure.
cargo_version() { { cargo --version 2>/dev/null || true; } | awk '{ print $2 }'; }

# The way of https://rustup.rs, for distributions without a package of it, such as Debian 12; the program is checked against
# the sum beside it.
install_rustup() {
    local from=https://static.rust-lang.org/rustup/dist/x86_64-unknown-linux-gnu to=$nested/rustup-init
    need_host_packages curl="curl ca-certificates"
    say "installing rustup from static.rust-lang.org into ${CARGO_HOME:-$HOME/.cargo} and ${RUSTUP_HOME:-$HOME/.rustup} (undo: rustup self uninstall)"
    quietly curl -sSf --retry 3 -o "$to" "$from/rustup-init"
    quietly curl -sSf --retry 3 -o "$to.sha256" "$from/rustup-init.sha256"
    [ "$(cut -d ' ' -f 1 "$to.sha256")" = "$(sha256sum "$to" | cut -d ' ' -f 1)" ] || setup_failed "$from/rustup-init came damaged"
    chmod 755 "$to"
    quietly "$to" -y --no-modify-path --profile minimal --default-toolchain none
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    hash -r
}

# Distributions package Rust for the host only, so the bare target takes rustup; newer ones package that. Debian's package
# takes the place of those of cargo and rustc, which is for the user to decide; the other way leaves them alone.
need_rustup() {
    command -v rustup >/dev/null && return
    need_package_lists
    if [ -z "$(cargo_version)" ] && has_package rustup; then
        need_host_packages rustup=rustup
    else
        install_rustup
    fi
}

need_toolchain() {
    say "installing the stable toolchain with rustup"
    quietly rustup toolchain install stable --profile minimal
    # A user's own choice of a toolchain stays what it is.
    if rustup default >/dev/null 2>&1; then export RUSTUP_TOOLCHAIN=stable; else quietly rustup default stable; fi
    hash -r
    recent_enough "$(cargo_version)" || setup_failed "cargo $(cargo_version) still comes first in PATH; $wanted or newer is needed"
}

need_cargo() {
    recent_enough "$(cargo_version)" && return
    local found
    found=$(cargo_version)
    say "Rust $wanted or newer is needed; found: ${found:-none}"
    need_rustup
    need_toolchain
}

has_target() { [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; }

# need_rustup_part WHAT COMMAND...: adds a part of the toolchain. A distribution's cargo cannot be added to.
need_rustup_part() {
    local what=$1
    shift
    say "adding to the Rust toolchain: $what"
    if ! command -v rustup >/dev/null; then
        need_rustup
        need_toolchain
    fi
    quietly rustup "$@"
}

setup_rust() {
    need_own_folder
    # The linker, which building for the host takes.
    need_host_packages cc="gcc libc6-dev"
    need_cargo
    has_target || need_rustup_part "the target $target" target add "$target"
    cargo fmt --version >/dev/null 2>&1 || need_rustup_part rustfmt component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || need_rustup_part clippy component add clippy
    say "Rust $(cargo_version) with the target $target is there"
}
