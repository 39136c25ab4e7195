//! The real host: Xen through dom0's kernel.

use crate::context;
use crate::guard::{Host, Info, Step};
use crate::lines::Lines;
use crate::mover::{Claim, Mover, REHEARSAL, SAVED, saved};
use crate::replace::{Host as _, again};
use std::io;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::time::{Duration, Instant};
use xen_kernel_rt::abi::domctl::info;
use xen_kernel_rt::abi::hvm::PARAM_CONSOLE_PFN;
use xen_kernel_rt::abi::sched::SHUTDOWN_WATCHDOG;
use xen_kernel_rt::abi::xen::errno;
use xen_kernel_rt::revival::record::{HELD, OFFSET, Record, SIZE, TRIES, Unusable, is_held};
use xenstore_stubdom::dom0::OwnRing;
use xenstore_stubdom::dom0::privcmd::{Command, ForeignPage, Privcmd, lock_memory};

/// Where init-xenstore-domain and start-with-xl write down which domain is the xenstore: `domid:N`.
pub const PID_FILE: &str = "/run/xen/xenstored.pid";

/// Versions of Xen's interface that are tried. What is used of it is the same in those of Xen 4.14 to 4.22, 0x12 to 0x18.
const VERSIONS: std::ops::RangeInclusive<u32> = 0x12..=0x18;

/// How long what was read from [`PID_FILE`] holds.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Xen and dom0.
#[derive(Debug)]
pub struct Dom0 {
    xen: Privcmd,
    version: u32,
    pid_file: PathBuf,
    /// What was last read, and when.
    store: Option<(Instant, Option<u16>)>,
    /// What dom0's kernel asks of the store, where it shows that.
    ring: Option<OwnRing>,
    began: Instant,
    lines: Lines,
    /// For tests of what a dead guard leaves: the step behind which this one ends.
    ends_behind: Option<Step>,
}

impl Dom0 {
    /// Opens what is needed, finds out which version Xen's interface has, and locks all memory.
    ///
    /// # Errors
    /// This is no dom0, its Xen is of another kind, or the rights are missing.
    pub fn open(pid_file: &Path, ends_behind: Option<Step>) -> Result<Self, String> {
        let xen = Privcmd::open().map_err(|error| error.to_string())?;
        let version = probe(|version| xen.domctl(version, 0, Command::Info).map(|_| ()))?;
        let lines = Lines::to(io::stderr());
        lock_memory().map_err(|error| format!("memory cannot be locked: {error}"))?;
        let began = Instant::now();
        let pid_file = pid_file.to_owned();
        let ring = OwnRing::map().inspect_err(|why| {
            lines.say(format!("dom0's own ring cannot be seen, so silence is not noticed: {why}"));
        });
        let (ring, store) = (ring.ok(), None);
        Ok(Self { xen, version, pid_file, store, ring, began, lines, ends_behind })
    }

    /// The page in which the domain's image publishes.
    fn page(&self, domid: u16) -> Result<ForeignPage, String> {
        let said = |error: io::Error| format!("the page of its console: {error}");
        let frame = self.xen.hvm_param(domid, PARAM_CONSOLE_PFN).map_err(said)?;
        self.xen.map(domid, frame).map_err(said)
    }
}

/// The most often that a domain is unpaused: Xen counts how often it was paused.
const PAUSES: u32 = 100;

/// Has the xenstore's domain go on that somebody has paused. `xl unpause` needs the store for that.
///
/// # Errors
/// It is no store, it is not paused, or Xen's refusal.
pub fn unpause(pid_file: &Path) -> Result<String, String> {
    let mut host = Dom0::open(pid_file, None)?;
    let domid = host.store().ok_or_else(|| format!("{} names no domain", pid_file.display()))?;
    for n in 0..PAUSES {
        let found = host.info(domid)?.ok_or_else(|| format!("there is no domain {domid}"))?;
        if found.flags & info::PAUSED == 0 {
            return match n {
                0 => Err(format!("domain {domid} is not paused")),
                _ => Ok(format!("domain {domid} goes on")),
            };
        }
        // Only a store that has served says how it is revived: another domain may have its domid, or it is being built.
        if let Err(why) = host.record(domid)? {
            return Err(format!("domain {domid}: {why}"));
        }
        let done = host.xen.domctl(host.version, domid, Command::Unpause);
        done.map_err(|error| format!("domain {domid} cannot be unpaused: {error}"))?;
    }
    Err(format!("domain {domid} is paused again and again"))
}

/// What stands in the place of a record.
fn published(page: &ForeignPage) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    for (word, at) in bytes.as_chunks_mut::<8>().0.iter_mut().zip((OFFSET..).step_by(8)) {
        *word = page.read(at).to_le_bytes();
    }
    bytes
}

/// The version of Xen's interface: the one in which `ask` is answered.
///
/// # Errors
/// None of them is, or Xen refuses for another reason.
pub fn probe(mut ask: impl FnMut(u32) -> io::Result<()>) -> Result<u32, String> {
    for version in VERSIONS.rev() {
        match ask(version) {
            Ok(()) => return Ok(version),
            Err(error) if error.raw_os_error() == Some(errno::EACCES) => {}
            Err(error) => return Err(format!("Xen does not answer: {error}")),
        }
    }
    let (first, last) = (VERSIONS.start(), VERSIONS.end());
    Err(format!("this Xen's interface has none of the versions {first:#x} to {last:#x}"))
}

/// The domid in the text of [`PID_FILE`].
#[must_use]
pub fn domid_in(text: &str) -> Option<u16> {
    text.lines().find_map(|line| line.strip_prefix("domid:")?.trim().parse().ok())
}

impl Host for Dom0 {
    fn store(&mut self) -> Option<u16> {
        match self.store {
            Some((at, store)) if at.elapsed() < READ_AGAIN => store,
            _ => {
                let text = std::fs::read_to_string(&self.pid_file);
                let store = text.ok().and_then(|text| domid_in(&text));
                self.store = Some((Instant::now(), store));
                store
            }
        }
    }

    fn info(&mut self, domid: u16) -> Result<Option<Info>, String> {
        match self.xen.domctl(self.version, domid, Command::Info) {
            Ok(answer) if answer.domain != domid => Ok(None),
            Ok(answer) => Ok(Some(Info {
                flags: answer.flags(),
                handle: answer.info_handle(),
                ran_ns: answer.info_cpu_time(),
            })),
            Err(error) if error.raw_os_error() == Some(errno::ESRCH) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn record(&mut self, domid: u16) -> Result<Result<(Record, u64), Unusable>, String> {
        let page = self.page(domid)?;
        let bytes = published(&page);
        let tries = page.read(OFFSET + TRIES);
        Ok(Record::from_bytes(&bytes, domid).map(|record| (record, tries)))
    }

    fn count(&mut self, domid: u16, tries: u64) -> Result<(), String> {
        self.page(domid)?.write(OFFSET + TRIES, tries);
        Ok(())
    }

    fn set(&mut self, domid: u16, record: &Record, reason: u64) -> Result<(), String> {
        let said = |error: io::Error| format!("the state of its processor: {error}");
        let now = self.xen.hvm_context(self.version, domid).map_err(said)?;
        let mut new = context::going_on(&now, record, reason).map_err(|why| why.to_string())?;
        self.xen.set_hvm_context(self.version, domid, &mut new).map_err(said)
    }

    fn resume(&mut self, domid: u16) -> Result<(), String> {
        let result = self.xen.domctl(self.version, domid, Command::Resume);
        result.map(|_| ()).map_err(|error| format!("resuming: {error}"))
    }

    fn unread(&mut self) -> Option<u32> {
        self.ring.as_ref().and_then(OwnRing::unread)
    }

    fn is_held(&mut self, domid: u16) -> Option<bool> {
        let page = self.page(domid).ok()?;
        let bytes = published(&page);
        Record::from_bytes(&bytes, domid).ok()?;
        is_held(&bytes, page.read(HELD))
    }

    fn shut_down(&mut self, domid: u16) -> Result<(), String> {
        self.xen.shut_down(domid, SHUTDOWN_WATCHDOG).map_err(|error| error.to_string())
    }

    fn is_replaced(&mut self) -> bool {
        Claim::is_made()
    }

    fn finish_replacement(&mut self) -> Option<Result<(), String>> {
        let [is_saved, is_rehearsed] = [SAVED, REHEARSAL].map(|path| Path::new(path).exists());
        if !is_saved && !is_rehearsed {
            return None;
        }
        let store = self.store();
        match Claim::make() {
            // Whoever had the claim may have come to its end just before.
            Ok(_claim) if !Path::new(SAVED).exists() => {
                let cleared = Mover::open(&self.lines, None).and_then(|mut host| host.clear());
                cleared.err().map(Err)
            }
            Ok(_claim) => Some(saved().and_then(|saved| {
                if store != Some(saved.domid) {
                    return Err(format!("{SAVED} is about domain {}", saved.domid));
                }
                again(&mut Mover::open(&self.lines, None)?, &saved)
            })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error.to_string())),
        }
    }

    fn wake(&mut self, domid: u16) -> Result<(), String> {
        let result = self.xen.domctl(self.version, domid, Command::TriggerNmi);
        result.map(|_| ()).map_err(|error| error.to_string())
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn say(&mut self, line: String) {
        self.lines.say(line);
    }

    fn done(&mut self, step: Step) {
        if self.ends_behind == Some(step) {
            exit(3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_by_asking() {
        let refused = |code| Err(io::Error::from_raw_os_error(code));
        for xen in 0x12..=0x18 {
            let found =
                probe(|version| if version == xen { Ok(()) } else { refused(errno::EACCES) });
            assert_eq!(found, Ok(xen));
        }
        assert!(probe(|_| refused(errno::EACCES)).unwrap_err().contains("0x12 to 0x18"));
        let mut asked = 0;
        let denied = probe(|_| {
            asked += 1;
            refused(errno::EPERM)
        });
        assert!(denied.unwrap_err().starts_with("Xen does not answer: "));
        assert_eq!(asked, 1);
    }

    #[test]
    fn the_file_names_a_domain_or_none() {
        assert_eq!(domid_in("domid:1\n"), Some(1));
        assert_eq!(domid_in("1234\n"), None);
        assert_eq!(domid_in("domid:70000\n"), None);
        assert_eq!(domid_in(""), None);
    }
}
