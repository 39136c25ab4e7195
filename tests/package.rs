//! `scripts/deb/xenstored`, which `/etc/init.d/xen` starts after `xenstore-stubdom enable`. Programs that succeed,
//! fail or hang stand in for Xen's. On hosts with Xen: `tests/nested/package.sh` and `tests/hosts`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with the package's start script and programs that stand in for what it calls.
struct Host {
    folder: PathBuf,
}

impl Host {
    /// `init` is what `init-xenstore-domain` does; a start has two seconds.
    fn new(name: &str, init: &str, settings: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(folder.join("bin")).unwrap();
        let host = Self { folder };
        let replaced = |file: &str, changes: &[(&str, &str)]| {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deb").join(file);
            let mut text = fs::read_to_string(from).unwrap();
            for (old, new) in changes {
                assert!(text.contains(old), "{file} has no {old}");
                text = text.replace(old, new);
            }
            host.write(file, &text);
        };
        let here = host.folder.to_str().unwrap();
        let run = format!("{here}/run");
        let common = [
            ("/run/xen", run.as_str()),
            ("image=/usr/lib/xenstore-stubdom", &format!("image={here}")),
            ("/etc/default/xenstore-stubdom", &format!("{here}/settings")),
        ];
        replaced("common.sh", &common);
        let start =
            [("/usr/lib/xenstore-stubdom", here), ("/run/xen", &run), ("now + 200", "now + 2")];
        replaced("xenstored", &start);
        host.write("xenstore-stubdom", "an image");
        host.write("settings", settings);
        host.write("bin/xenstore-socket", "#!/bin/sh\n");
        host.write("bin/oxenstored", "#!/bin/sh\necho \"a daemon: $*\" >&2\n");
        host.write(
            "bin/init-xenstore-domain",
            &format!("#!/bin/sh\n{init}\n").replace("RUN", &run),
        );
        host
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.folder.join(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn start(&self) -> (Output, String) {
        let path = format!("{}/bin:{}", self.folder.display(), std::env::var("PATH").unwrap());
        let output = Command::new("sh")
            .arg(self.folder.join("xenstored"))
            .args(["--pid-file", "/nowhere"])
            .env("PATH", path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output, said)
    }
}

#[test]
fn a_domain_that_serves_is_named() {
    let (output, said) = Host::new("serves", "echo domid:7 >RUN/xenstored.pid", "").start();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("domain 7 is this host's xenstore"), "{said}");
}

#[test]
fn a_domain_that_cannot_be_built_leaves_the_host_to_a_daemon() {
    let (output, said) = Host::new("fails", "echo 'no loader'; exit 1", "FALLBACK=yes").start();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("no loader").count(), 2, "a second try with less memory: {said}");
    assert!(said.contains("a daemon: --pid-file /nowhere"), "{said}");

    let (output, said) = Host::new("fails-alone", "exit 1", "FALLBACK=no").start();
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("the stub domain could not be built (init-xenstore-domain: status 1)"),
        "{said}"
    );
}

/// What waits in the kernel cannot be ended, and each turn of waiting for it takes long on a slow machine. systemd gives the
/// whole start five minutes: 200 s of them are for the domain.
#[test]
fn a_start_that_hangs_is_given_up_by_the_clock() {
    let host = Host::new("hangs", "trap '' TERM; /bin/sleep 60", "FALLBACK=yes");
    // One turn takes two seconds.
    let turns = host.folder.join("turns");
    host.write("bin/sleep", &format!("#!/bin/sh\necho >>{}\nexec /bin/sleep 2\n", turns.display()));
    let (output, said) = host.start();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("given up after 2 s"), "{said}");
    assert!(said.contains("was built but does not answer"), "{said}");
    let turns = fs::read_to_string(turns).unwrap().lines().count();
    assert!(turns <= 5, "{turns} turns of two seconds for seven");
}
