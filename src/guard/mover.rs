//! The real host for a replacement: Xen, dom0's kernel, the console daemon, and the store itself as one more client.

use crate::builder::{CONSOLE, Contents, IDENT_PT, SPECIAL, STORE, Sizes, ident_pt};
use crate::context;
use crate::host::probe;
use crate::lines::Lines;
use crate::replace::{Details, Host, REHEARSAL_HANDLE, Saved};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use xen_kernel_rt::abi::console;
use xen_kernel_rt::abi::domctl::{Domctl, NewDomain};
use xen_kernel_rt::abi::event_channel::STATUS_INTERDOMAIN;
use xen_kernel_rt::abi::hvm::{
    PARAM_CONSOLE_EVTCHN, PARAM_CONSOLE_PFN, PARAM_IDENT_PT, PARAM_STORE_EVTCHN, PARAM_STORE_PFN,
};
use xen_kernel_rt::abi::xen::{VIRQ_DOM_EXC, errno};
use xen_kernel_rt::revival::record;
use xenstore_stubdom::dom0::again_while_busy;
use xenstore_stubdom::dom0::privcmd::{
    Command, PAGE_SIZE, Privcmd, ignore_signals, lock_file, lock_memory, terminate,
};
use xenstore_stubdom::proto::handover::Digest;
use xenstore_stubdom::proto::replacement::{OFFSET, Offer, SIZE, WANTED};
use xenstore_stubdom::proto::wire::{HEADER_SIZE, Kind, PAYLOAD_MAX};

/// What is needed to go on behind the point of no return. Gone with a reboot, as the guests are.
pub const SAVED: &str = "/run/xen/xenstore-replacement";
/// The domid of the domain of a rehearsal that is under way.
pub const REHEARSAL: &str = "/run/xen/xenstore-rehearsal";
/// Where the kernel lets its own clients in.
const STORE_DEVICE: &str = "/dev/xen/xenbus";
/// Whoever has locked this file replaces a domain. The kernel unlocks it when the process dies. Only root may open it: a name
/// that everybody can have would let everybody stop the guard.
const LOCK: &str = "/run/xen/xenstore-replacement.lock";
/// How long the store may take for a request, and a program to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// A page of a region's list: the next one, the number of frames that it names, those frames.
const LIST_WORDS: usize = PAGE_SIZE / 8;

/// The sign that a replacement is under way.
#[derive(Debug)]
pub struct Claim {
    _file: File,
}

impl Claim {
    /// Makes it, unless somebody else has.
    ///
    /// # Errors
    /// The kernel's refusal; [`io::ErrorKind::WouldBlock`] if somebody has.
    pub fn make() -> io::Result<Self> {
        Self::of(Path::new(LOCK))
    }

    fn of(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        lock_file(&file)?;
        Ok(Self { _file: file })
    }

    /// As [`make`](Self::make); the guard may have looked just now, so that is tried more than once.
    ///
    /// # Errors
    /// As there.
    pub fn take() -> io::Result<Self> {
        for _ in 0..50 {
            match Self::make() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            std::thread::sleep(Duration::from_millis(7));
        }
        Self::make()
    }

    /// Whether somebody else has.
    #[must_use]
    pub fn is_made() -> bool {
        matches!(Self::make(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// The host.
#[derive(Debug)]
pub struct Mover {
    xen: Privcmd,
    version: u32,
    began: Instant,
    lines: Lines,
    answer: Option<Receiver<Result<String, String>>>,
    /// The console daemon that was ended, as it was called.
    console: Option<(PathBuf, Vec<OsString>)>,
    /// For tests: the number of the step behind which this program ends.
    ends_behind: Option<Step>,
}

/// Steps behind which a test has the program end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The domain of the rehearsal is there.
    Rehearsing,
    /// The new one is there, and has nothing yet.
    Created,
    /// The state is taken, and the old domain waits.
    Taken,
    /// The old domain is destroyed.
    Destroyed,
    /// The new one is built, and does not run yet.
    Built,
}

fn said(what: &str) -> impl Fn(io::Error) -> String {
    let what = what.to_owned();
    move |error| format!("{what}: {error}")
}

impl Mover {
    /// Opens what is needed.
    ///
    /// # Errors
    /// This is no dom0, its Xen is of another kind, or the rights are missing.
    pub fn open(lines: &Lines, ends_behind: Option<Step>) -> Result<Self, String> {
        let xen = Privcmd::open().map_err(|error| error.to_string())?;
        let version = probe(|version| xen.domctl(version, 0, Command::Info).map(|_| ()))?;
        lock_memory().map_err(said("memory cannot be locked"))?;
        let (began, answer, console) = (Instant::now(), None, None);
        let lines = lines.clone();
        Ok(Self { xen, version, began, lines, answer, console, ends_behind })
    }

    fn domctl(&self, domid: u16, command: Command) -> io::Result<Domctl> {
        again_while_busy(|| self.xen.domctl(self.version, domid, command))
    }

    /// A page of words that a domain that does not run has written.
    fn words(&self, domid: u16, frame: u64) -> io::Result<Vec<u64>> {
        let bytes = self.xen.map_all(domid, &[frame])?.read();
        Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    fn console_page(&self, domid: u16) -> io::Result<Vec<u8>> {
        let frame = self.xen.hvm_param(domid, PARAM_CONSOLE_PFN)?;
        Ok(self.xen.map_all(domid, &[frame])?.read())
    }

    fn done(&self, step: Step) {
        if self.ends_behind == Some(step) {
            std::process::exit(3);
        }
    }

    /// Everything of a new domain behind its creation.
    fn furnish(&self, domid: u16, sizes: Sizes, contents: &Contents) -> Result<(), String> {
        let Sizes { memory, .. } = sizes;
        self.domctl(domid, Command::MaxVcpus(1)).map_err(said("its vCPU"))?;
        let limit = Command::MaxMemory(sizes.limit_kib());
        self.domctl(domid, limit).map_err(said("its limit of memory"))?;
        let pool = Command::PagingPool(sizes.paging_mib());
        self.domctl(domid, pool).map_err(said("memory for its page tables"))?;
        // In pieces of 2 MiB, as long as Xen has them.
        for chunk in 0..memory.div_ceil(2) {
            let first = chunk.saturating_mul(512);
            let end = first.saturating_add(512).min(memory.saturating_mul(256));
            let is_whole = end.saturating_sub(first) == 512;
            if is_whole && self.xen.populate(domid, 9, &mut [first]).is_ok_and(|done| done == 1) {
                continue;
            }
            self.populate(domid, first..end)
                .map_err(|why| format!("Xen has no {memory} MiB of free memory: {why}"))?;
        }
        self.populate(domid, SPECIAL)?;
        self.xen.set_memory_map(domid, &mut sizes.map()).map_err(said("its memory map"))?;
        for (frame, bytes) in [(STORE, vec![]), (CONSOLE, vec![]), (IDENT_PT, ident_pt())] {
            let page = self.xen.map_all(domid, &[frame]);
            page.map_err(said("its special pages"))?.write(&bytes);
        }
        let pages = contents.bytes.len().div_ceil(PAGE_SIZE);
        let frames: Vec<u64> = (contents.first..).take(pages).collect();
        let mapped = self.xen.map_all(domid, &frames);
        mapped.map_err(said("its memory"))?.write(&contents.bytes);
        let port = |remote| self.xen.alloc_unbound(domid, remote).map_err(said("a port"));
        let (console_port, store_port) = (port(0)?, port(domid)?);
        let params = [
            (PARAM_STORE_PFN, STORE),
            (PARAM_STORE_EVTCHN, u64::from(store_port)),
            (PARAM_IDENT_PT, IDENT_PT.saturating_mul(PAGE_SIZE as u64)),
            (PARAM_CONSOLE_PFN, CONSOLE),
            (PARAM_CONSOLE_EVTCHN, u64::from(console_port)),
        ];
        for (index, value) in params {
            self.xen.set_hvm_param(domid, index, value).map_err(said("its parameters"))?;
        }
        let now = self.xen.hvm_context(self.version, domid).map_err(said("its processor"))?;
        let mut state = context::beginning(&now, contents.entry, contents.start_info)
            .map_err(|why| why.to_string())?;
        self.xen
            .set_hvm_context(self.version, domid, &mut state)
            .map_err(said("its processor's state"))
    }

    fn populate(&self, domid: u16, frames: std::ops::Range<u64>) -> Result<(), String> {
        let mut frames: Vec<u64> = frames.collect();
        match self.xen.populate(domid, 0, &mut frames) {
            Ok(done) if done == frames.len() => Ok(()),
            Ok(done) => Err(format!("{done} of {} pages", frames.len())),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Host for Mover {
    fn info(&mut self, domid: u16) -> Result<Option<Details>, String> {
        match self.domctl(domid, Command::Info) {
            Ok(answer) if answer.domain != domid => Ok(None),
            Ok(answer) => Ok(Some(Details {
                flags: answer.flags(),
                new: NewDomain { label: answer.info_label(), handle: answer.info_handle() },
                pages: answer.info_pages(),
                max_pages: answer.info_max_pages(),
            })),
            Err(error) if error.raw_os_error() == Some(errno::ESRCH) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn ask(&mut self, domid: u16, handover: u32) -> Result<(), String> {
        let frame = self.xen.hvm_param(domid, PARAM_CONSOLE_PFN);
        let page = frame.and_then(|frame| self.xen.map(domid, frame));
        page.map_err(said("the page of its console"))?.write(OFFSET, WANTED);
        let (answered, answer) = channel();
        std::thread::spawn(move || {
            let _ =
                answered.send(request(Kind::Control, format!("replace\0{handover}\0").as_bytes()));
        });
        self.answer = Some(answer);
        Ok(())
    }

    fn take_back(&mut self, domid: u16) {
        let frame = self.xen.hvm_param(domid, PARAM_CONSOLE_PFN);
        if let Ok(mut page) = frame.and_then(|frame| self.xen.map(domid, frame)) {
            page.write(OFFSET, 0);
        }
    }

    fn answer(&mut self) -> Option<Result<String, String>> {
        let answer = self.answer.as_ref()?.try_recv().ok()?;
        self.answer = None;
        Some(answer)
    }

    fn offer(&mut self, domid: u16) -> Result<(Offer, Vec<u8>), String> {
        let page = self.console_page(domid).map_err(said("the page of its console"))?;
        let bytes = page.get(OFFSET..).and_then(|rest| rest.first_chunk::<SIZE>());
        let offer = bytes.and_then(Offer::from_bytes).ok_or("it offers nothing")?;
        let offer = offer.map_err(|why| why.to_string())?;
        let len = usize::try_from(offer.len()).map_err(|error| error.to_string())?;
        let wanted = len.div_ceil(PAGE_SIZE);
        let (mut list, mut frames) = (offer.region, Vec::new());
        while frames.len() < wanted && list != 0 {
            let words = self.words(domid, list).map_err(said("a page of its region's list"))?;
            let mut words = words.into_iter();
            let (next, count) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
            let count = usize::try_from(count).unwrap_or(0).min(LIST_WORDS);
            if count == 0 {
                break;
            }
            frames.extend(words.take(count));
            list = next;
        }
        frames.truncate(wanted);
        if frames.len() < wanted || frames.is_empty() {
            return Err("the list of its region is damaged".to_owned());
        }
        let mut bytes = self.xen.map_all(domid, &frames).map_err(said("its region"))?.read();
        bytes.truncate(len);
        Ok((offer, bytes))
    }

    fn peer(&mut self, domid: u16, port: u32) -> Result<Option<(u16, u32)>, String> {
        let status = match self.xen.port_status(domid, port) {
            Ok(status) => status,
            Err(error) if error.raw_os_error() == Some(errno::EINVAL) => return Ok(None),
            Err(error) => return Err(format!("its port {port}: {error}")),
        };
        let [low, remote] = status.u;
        let peer = u16::try_from(low & 0xffff).unwrap_or(u16::MAX);
        Ok((status.status == STATUS_INTERDOMAIN).then_some((peer, remote)))
    }

    fn resume(&mut self, domid: u16) -> Result<(), String> {
        self.done(Step::Taken);
        self.domctl(domid, Command::Resume).map(|_| ()).map_err(said("resuming"))
    }

    fn destroy(&mut self, domid: u16) -> Result<(), String> {
        self.domctl(domid, Command::Destroy).map_err(|error| error.to_string())?;
        Ok(())
    }

    fn build(
        &mut self,
        wanted: Option<u16>,
        new: &NewDomain,
        sizes: Sizes,
        contents: &Contents,
    ) -> Result<u16, String> {
        let begun = Instant::now();
        let domid = loop {
            // From Xen 4.21 on a domid is free a little later than its domain is gone.
            match self.xen.create(self.version, wanted, new) {
                Err(error)
                    if error.raw_os_error() == Some(errno::EEXIST)
                        && begun.elapsed() < Duration::from_secs(1) =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                result => break result.map_err(said("creating it"))?,
            }
        };
        // Written down before it gets memory, so that it does not keep that for ever if this program dies.
        let noted = match wanted {
            Some(_) => Ok(()),
            None => write_file(Path::new(REHEARSAL), domid.to_string().as_bytes()),
        };
        let noted = noted.map_err(said(REHEARSAL));
        self.done(if wanted.is_none() { Step::Rehearsing } else { Step::Created });
        match noted.and_then(|()| self.furnish(domid, sizes, contents)) {
            Ok(()) => Ok(domid),
            Err(why) => {
                let _ = self.domctl(domid, Command::Destroy);
                Err(why)
            }
        }
    }

    fn clear(&mut self) -> Result<(), String> {
        let Ok(text) = std::fs::read_to_string(REHEARSAL) else { return Ok(()) };
        if let Ok(domid) = text.parse()
            && let Some(found) = self.info(domid)?
            && found.new.handle == REHEARSAL_HANDLE
        {
            self.destroy(domid)?;
        }
        forget(REHEARSAL)
    }

    fn unpause(&mut self, domid: u16) -> Result<(), String> {
        self.domctl(domid, Command::Unpause).map(|_| ()).map_err(said("unpausing"))
    }

    fn hear(&mut self, domid: u16) -> Result<(), String> {
        self.done(Step::Built);
        let hear = Command::SetVirqHandler(VIRQ_DOM_EXC);
        self.domctl(domid, hear).map(|_| ()).map_err(said("VIRQ_DOM_EXC"))
    }

    fn serves(&mut self, domid: u16) -> Result<bool, String> {
        let page = self.console_page(domid).map_err(said("the page of its console"))?;
        let bytes = page.get(record::OFFSET..).and_then(|rest| rest.first_chunk());
        Ok(bytes.is_some_and(|bytes| record::Record::from_bytes(bytes, domid).is_ok()))
    }

    fn ignore_signals(&mut self) {
        ignore_signals(true);
    }

    fn last_words(&mut self, domid: u16) -> String {
        let page = self.console_page(domid).unwrap_or_default();
        last_words(&page).unwrap_or_else(|| "nothing".to_owned())
    }

    fn stop_console(&mut self) -> Result<(), String> {
        let Some(process) = find_process("xenconsoled") else { return Ok(()) };
        let folder = PathBuf::from(format!("/proc/{process}"));
        let program = std::fs::read_link(folder.join("exe")).map_err(said("xenconsoled"))?;
        let line = std::fs::read(folder.join("cmdline")).map_err(said("xenconsoled"))?;
        let words = line.split(|byte| *byte == 0).skip(1);
        let words = words.filter(|word| !word.is_empty());
        let words = words.map(|word| OsString::from_vec(word.to_vec())).collect();
        terminate(process).map_err(said("xenconsoled cannot be ended"))?;
        self.console = Some((program, words));
        let begun = Instant::now();
        while is_alive(&folder) {
            if begun.elapsed() > PATIENCE {
                return Err("xenconsoled does not end".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn start_console(&mut self) {
        let Some((program, words)) = self.console.take() else { return };
        // It would ignore them as well, and nobody could end it.
        ignore_signals(false);
        let started = Process::new(&program)
            .args(&words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match started {
            // It leaves a child behind and ends, and somebody has to take notice of that.
            Ok(mut started) => drop(std::thread::spawn(move || started.wait())),
            Err(error) => {
                self.say(format!("{} cannot be started again: {error}", program.display()));
            }
        }
    }

    fn keep(&mut self, saved: Option<&Saved>) -> Result<(), String> {
        let Some(saved) = saved else { return forget(SAVED) };
        write_file(Path::new(SAVED), &pack(saved)).map_err(said(SAVED))
    }

    fn note(&mut self, domid: u16, sizes: Sizes) -> Result<(), String> {
        let console_port =
            self.xen.hvm_param(domid, PARAM_CONSOLE_EVTCHN).map_err(said("its console"))?;
        let home = format!("/local/domain/{domid}");
        let nodes = [
            ("console/port", console_port),
            ("console/ring-ref", CONSOLE),
            ("memory/target", sizes.memory.saturating_mul(1024)),
            ("memory/static-max", sizes.maxmem.saturating_mul(1024)),
        ];
        for (name, value) in nodes {
            let message = format!("{home}/{name}\0{value}");
            limited(Kind::Write, message.into_bytes()).map_err(|why| format!("{name}: {why}"))?;
        }
        Ok(())
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn sleep(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn say(&mut self, line: String) {
        if line.contains("no way back") {
            self.done(Step::Destroyed);
        }
        self.lines.say(format!("xenstore-stubdom replace: {line}"));
    }
}

/// Removes a file that need not be there.
fn forget(path: &str) -> Result<(), String> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{path}: {error}")),
        _ => Ok(()),
    }
}

/// The last two lines of a console's ring.
fn last_words(page: &[u8]) -> Option<String> {
    let word = |at: usize| {
        let word = page.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*word))
    };
    let produced = word(console::OUT_PROD)?;
    let size = console::OUT_SIZE;
    let ring = page.get(console::OUT..)?.get(..usize::try_from(size).ok()?)?;
    let first = produced.saturating_sub(size);
    let bytes: Vec<u8> = (first..produced)
        .filter_map(|at| ring.get(usize::try_from(at % size).ok()?).copied())
        .collect();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(2)..)?.join("; ");
    (!last.is_empty()).then_some(last)
}

/// A process of root's of that name, if there is one: anybody can give a process that name.
fn find_process(name: &str) -> Option<u32> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let process = entry.file_name().to_str()?.parse().ok()?;
        let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let is_it = comm.trim_end() == name && entry.metadata().ok()?.uid() == 0;
        (is_it && is_alive(&entry.path())).then_some(process)
    })
}

/// Whether the process behind this folder of `/proc` still has memory: one that has ended may be there until somebody takes
/// notice of it.
fn is_alive(folder: &Path) -> bool {
    let status = std::fs::read_to_string(folder.join("status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("VmSize:"))
}

/// A file that only its owner can read, whole or not at all.
fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(bytes)?;
    drop(file);
    std::fs::rename(part, path)
}

/// A request to the store, answered in time.
fn limited(kind: Kind, payload: Vec<u8>) -> Result<String, String> {
    let (answered, answer) = channel();
    std::thread::spawn(move || {
        let _ = answered.send(request(kind, &payload));
    });
    answer.recv_timeout(PATIENCE).map_err(|why| match why {
        RecvTimeoutError::Timeout => "the store does not answer".to_owned(),
        RecvTimeoutError::Disconnected => "the request was given up".to_owned(),
    })?
}

/// A request to the store, through dom0's kernel; waits for the reply as long as that takes.
fn request(kind: Kind, payload: &[u8]) -> Result<String, String> {
    let error = said(STORE_DEVICE);
    let mut device =
        OpenOptions::new().read(true).write(true).open(STORE_DEVICE).map_err(&error)?;
    let len = u32::try_from(payload.len()).map_err(|error| error.to_string())?;
    let mut message = Vec::new();
    for word in [kind.number(), 1, 0, len] {
        message.extend(word.to_le_bytes());
    }
    message.extend(payload);
    device.write_all(&message).map_err(&error)?;
    let mut header = [0; HEADER_SIZE];
    read_all(&mut device, &mut header).map_err(&error)?;
    let (words, _) = header.as_chunks::<4>();
    let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
    let answered = words.next().unwrap_or(0);
    let len = words.nth(2).and_then(|len| usize::try_from(len).ok()).unwrap_or(usize::MAX);
    if len > PAYLOAD_MAX {
        return Err("a reply that is too long".to_owned());
    }
    let mut text = vec![0; len];
    read_all(&mut device, &mut text).map_err(&error)?;
    let text = String::from_utf8_lossy(&text).trim_end_matches(['\0', '\n']).to_owned();
    if answered == Kind::Error.number() { Err(text) } else { Ok(text) }
}

fn read_all(device: &mut File, into: &mut [u8]) -> io::Result<()> {
    device.read_exact(into)
}

const MAGIC: u64 = u64::from_le_bytes(*b"XSsaved1");

/// What is kept, as bytes: words, image, command line, module, a digest of all of it.
fn pack(saved: &Saved) -> Vec<u8> {
    let Saved { domid, new, sizes, image, line, module } = saved;
    let numbers = [
        MAGIC,
        u64::from(*domid),
        u64::from(new.label),
        sizes.memory,
        sizes.maxmem,
        image.len() as u64,
        line.len() as u64,
        module.len() as u64,
    ];
    let mut bytes = Vec::new();
    numbers.map(u64::to_le_bytes).iter().for_each(|word| bytes.extend(word));
    bytes.extend(new.handle);
    [image, line, module].into_iter().for_each(|part| bytes.extend(part));
    let digest = Digest::of(&bytes);
    bytes.extend(digest.to_le_bytes());
    bytes
}

/// Reads it; `None` if it is damaged.
fn unpack(bytes: &[u8]) -> Option<Saved> {
    let (bytes, digest) = bytes.split_last_chunk::<8>()?;
    let (words, rest) = bytes.split_first_chunk::<64>()?;
    let mut words = words.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    let mut next = || words.next().unwrap_or(0);
    if next() != MAGIC || Digest::of(bytes) != u64::from_le_bytes(*digest) {
        return None;
    }
    let (domid, label) = (u16::try_from(next()).ok()?, u32::try_from(next()).ok()?);
    let sizes = Sizes { memory: next(), maxmem: next() };
    let lens = [next(), next(), next()].map(|len| usize::try_from(len).unwrap_or(usize::MAX));
    let (handle, mut rest) = rest.split_first_chunk::<16>()?;
    let mut parts = lens.into_iter().map(|len| {
        let (part, more) = rest.split_at_checked(len)?;
        rest = more;
        Some(part.to_vec())
    });
    let (image, line, module) = (parts.next()??, parts.next()??, parts.next()??);
    Some(Saved { domid, new: NewDomain { label, handle: *handle }, sizes, image, line, module })
}

/// What a replacement before has left, if it did not come to its end.
///
/// # Errors
/// There is none, or it is damaged.
pub fn saved() -> Result<Saved, String> {
    let bytes = std::fs::read(SAVED).map_err(said(SAVED))?;
    unpack(&bytes).ok_or_else(|| format!("{SAVED} is damaged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back() {
        let saved = Saved {
            domid: 3,
            new: NewDomain { label: 9, handle: *b"0123456789abcdef" },
            sizes: Sizes { memory: 8, maxmem: 64 },
            image: b"image".to_vec(),
            line: b"--event 3".to_vec(),
            module: b"module".to_vec(),
        };
        let bytes = pack(&saved);
        assert_eq!(unpack(&bytes), Some(saved));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unpack(&damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn the_last_words_of_a_console() {
        let mut page = vec![0; PAGE_SIZE];
        let text = b"one\r\ntwo\r\nthree\r\n";
        // Over the end of the ring.
        let begin = 2048 * 3 - 7_u32;
        for (at, byte) in (begin..).zip(text) {
            page[console::OUT + (at % 2048) as usize] = *byte;
        }
        let end = begin + u32::try_from(text.len()).unwrap();
        page[console::OUT_PROD..][..4].copy_from_slice(&end.to_le_bytes());
        assert_eq!(last_words(&page).as_deref(), Some("two; three"));
        assert_eq!(last_words(&vec![0; PAGE_SIZE]), None);
        assert_eq!(last_words(&[]), None);
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive() {
        assert!(is_alive(Path::new("/proc/self")));
        let mut child = Process::new("true").spawn().unwrap();
        let folder = PathBuf::from(format!("/proc/{}", child.id()));
        let begun = Instant::now();
        while is_alive(&folder) && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(folder.exists() && !is_alive(&folder), "not yet taken notice of");
        child.wait().unwrap();
        assert!(!is_alive(&folder));
    }

    #[test]
    fn one_claim_at_a_time() {
        let path = std::env::temp_dir().join(format!("xenstore-test-{}", std::process::id()));
        let claim = Claim::of(&path).unwrap();
        let second = Claim::of(&path).map_err(|error| error.kind());
        assert_eq!(second.unwrap_err(), io::ErrorKind::WouldBlock);
        drop(claim);
        // A program that another test starts may have it for the moment between fork and exec.
        let begun = Instant::now();
        while Claim::of(&path).is_err() {
            assert!(begun.elapsed() < PATIENCE);
        }
        std::fs::remove_file(path).unwrap();
    }
}
