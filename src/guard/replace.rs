//! `xenstore-stubdom replace`: another domain in the place of the one that is the xenstore, under the same domid.
//!
//! Guests and dom0 have granted their rings and offered their ports to a domid. So whoever has that domid can go on with
//! them, and nobody else ever can.
//!
//! 1. **Rehearsal.** The server stops for a moment, writes its whole state down, and goes on. A domain of any domid is built
//!    as the new one is going to be, takes the state over, writes it down again and compares the digests. It touches
//!    nothing of the host, and is destroyed. Whatever is wrong with memory, image or state is found here.
//! 2. **The state is taken.** The server stops again and writes everything down. The way back is to have it go on, up to the
//!    third step.
//! 3. **The old domain is destroyed.** From here on the state is in this program's memory and in a file, and there is only the
//!    way forward.
//! 4. **The new one is built** and serves.
//!
//! A program that dies before the third step leaves a domain that waits, which the guard has go on; one that dies after it
//! leaves the file, with which `replace --again` goes on.

use crate::builder::{Contents, MIB, SPECIAL, Sizes, contents};
use std::time::Duration;
use xen_kernel_rt::abi::domctl::{NewDomain, info};
use xen_kernel_rt::abi::sched::{SHUTDOWN_NAMES, SHUTDOWN_POWEROFF, SHUTDOWN_SUSPEND};
use xenstore_stubdom::proto::handover::{Digest, HANDOVER};
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::image::Image;
use xenstore_stubdom::proto::replacement::{Head, Offer, Port};
use xenstore_stubdom::proto::stream::{Endpoint, Reader, Record};

/// How long the server may take to stop, a domain to serve, and an old one to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a rehearsal may take: longer, since nobody waits for it.
const REHEARSAL_PATIENCE: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(1);
/// How often the new domain is built before it is left to the guard and the administrator. Each pause is four times as long
/// as the one before: what takes memory away for a moment must not take the host away for good.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How often it is rehearsed if the state grows by too much between the rehearsal and the moment that counts.
const REHEARSALS: u32 = 3;
/// The UUID of the domain of a rehearsal, by which one that was left behind is known.
pub const REHEARSAL_HANDLE: [u8; 16] = *b"xenstorerehearse";

/// Bytes by which a state may grow behind its rehearsal: its rehearsal had room for eight times as many.
fn growth(len: usize) -> usize {
    (32_usize << 10).saturating_add(len / 32)
}

/// What Xen says of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Details {
    /// Bits as in [`info`].
    pub flags: u64,
    /// UUID and label, which the new one gets, too.
    pub new: NewDomain,
    /// Pages that it has, and that it may have.
    pub pages: u64,
    /// See there.
    pub max_pages: u64,
}

impl Details {
    /// The reason of its shutdown, if it is shut down.
    fn shutdown(&self) -> Option<u32> {
        let reason = u32::try_from(self.flags >> info::SHUTDOWN_REASON & 0xff).unwrap_or(0);
        (self.flags & info::SHUTDOWN != 0).then_some(reason)
    }
}

/// The world of this program. An error is a sentence.
#[expect(
    clippy::missing_errors_doc,
    reason = "every error is the refusal of Xen or of the kernel, as a sentence"
)]
pub trait Host {
    /// What Xen says of a domain; `None` if there is none.
    fn info(&mut self, domid: u16) -> Result<Option<Details>, String>;
    /// Asks the server to stop, for an image that understands this version; the answer comes later.
    fn ask(&mut self, domid: u16, handover: u32) -> Result<(), String>;
    /// Takes that back: a server that has not stopped yet does not stop any more.
    fn take_back(&mut self, domid: u16);
    /// Its answer, if that has come.
    fn answer(&mut self) -> Option<Result<String, String>>;
    /// What a domain that has stopped offers, and the bytes of its region.
    fn offer(&mut self, domid: u16) -> Result<(Offer, Vec<u8>), String>;
    /// What a domain's port is bound to: another domain and its port.
    fn peer(&mut self, domid: u16, port: u32) -> Result<Option<(u16, u32)>, String>;
    /// Has a domain that was shut down go on.
    fn resume(&mut self, domid: u16) -> Result<(), String>;
    /// Destroys a domain.
    fn destroy(&mut self, domid: u16) -> Result<(), String>;
    /// Builds a domain of this domid or of any, which is paused; says its domid. If that fails nothing is left of it.
    fn build(
        &mut self,
        wanted: Option<u16>,
        new: &NewDomain,
        sizes: Sizes,
        contents: &Contents,
    ) -> Result<u16, String>;
    /// Destroys the domain of a rehearsal that a program has left which was killed.
    fn clear(&mut self) -> Result<(), String>;
    /// Has it begin.
    fn unpause(&mut self, domid: u16) -> Result<(), String>;
    /// Has it hear of the end of others.
    fn hear(&mut self, domid: u16) -> Result<(), String>;
    /// Whether its image has published that it serves. Not to know it is no reason to destroy a domain.
    fn serves(&mut self, domid: u16) -> Result<bool, String>;
    /// From here on no signal of a terminal or of a session ends or stops this program.
    fn ignore_signals(&mut self);
    /// What it has last said on its console.
    fn last_words(&mut self, domid: u16) -> String;
    /// Ends the console daemon, which maps a page of the domain, and starts it again.
    fn stop_console(&mut self) -> Result<(), String>;
    /// See there.
    fn start_console(&mut self);
    /// Keeps what is needed to go on, or forgets it.
    fn keep(&mut self, saved: Option<&Saved>) -> Result<(), String>;
    /// Writes down in the store what has become other with the domain.
    fn note(&mut self, domid: u16, sizes: Sizes) -> Result<(), String>;
    /// A clock.
    fn now(&self) -> Duration;
    /// Waits.
    fn sleep(&mut self, time: Duration);
    /// A line for the administrator.
    fn say(&mut self, line: String);
}

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The new domain's image.
    pub image: Vec<u8>,
    /// MiB, if others than now.
    pub memory: Option<u64>,
    /// Likewise, in the end.
    pub maxmem: Option<u64>,
    /// The first step is all.
    pub only_rehearse: bool,
}

/// Everything that the new domain is built of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    /// Its domid.
    pub domid: u16,
    /// UUID and label.
    pub new: NewDomain,
    /// Its memory.
    pub sizes: Sizes,
    /// Its image.
    pub image: Vec<u8>,
    /// Its command line.
    pub line: Vec<u8>,
    /// The state.
    pub module: Vec<u8>,
}

/// A state that was taken.
struct State {
    ports: Vec<Port>,
    stream_len: u64,
    private_len: u64,
    digest: u64,
    /// Stream and private part.
    bytes: Vec<u8>,
    line: Vec<u8>,
}

impl State {
    /// As a domain gets it.
    fn module(&self, is_rehearsal: bool) -> Vec<u8> {
        let Self { stream_len, private_len, digest, .. } = *self;
        let mut module = Vec::new();
        Head { is_rehearsal, stream_len, private_len, digest }
            .write(self.ports.iter().copied(), |word| module.extend(word));
        module.extend(&self.bytes);
        if is_rehearsal {
            // The image keeps a copy of all of it while it takes the state over. So there is room for a larger state, which
            // takes some four times as much in memory.
            let more = growth(self.bytes.len()).saturating_mul(8);
            module.resize(module.len().saturating_add(more), 0);
        }
        module
    }
}

/// The moments of the time in which nobody is served.
#[derive(Clone, Copy)]
struct Times {
    stopped: Duration,
    taken: Duration,
}

/// Does all of it.
///
/// # Errors
/// Why the old domain goes on; or, if there is none any more, what is to be done.
pub fn replace(host: &mut impl Host, domid: u16, plan: &Plan) -> Result<(), String> {
    let old = host.info(domid)?.ok_or_else(|| format!("there is no domain {domid}"))?;
    check(domid, &old)?;
    let image = Image::parse(&plan.image).map_err(|why| why.to_string())?;
    let handover = image.check_versions(HANDOVER).map_err(|why| why.to_string())?;
    let sizes = sizes(plan, &old);
    host.clear()?;
    let asked = host.now();
    let state = take(host, domid, handover)?;
    go_on(host, domid)?;
    let stopped = host.now().saturating_sub(asked);
    rehearse(host, &old.new, &image, sizes, &state)?;
    host.say(format!("nobody was served for {} ms of that", stopped.as_millis()));
    if plan.only_rehearse {
        host.say(format!("domain {domid} could be replaced: the rehearsal went well"));
        return Ok(());
    }
    host.ignore_signals();
    host.stop_console()?;
    let save = |state: &State| Saved {
        domid,
        new: old.new,
        sizes,
        image: plan.image.clone(),
        line: state.line.clone(),
        module: state.module(false),
    };
    let result = move_on(host, domid, handover, state, &image, save);
    host.start_console();
    result
}

/// The steps behind the first rehearsal, which was of this state.
fn move_on(
    host: &mut impl Host,
    domid: u16,
    handover: u32,
    mut rehearsed: State,
    image: &Image<'_>,
    save: impl Fn(&State) -> Saved,
) -> Result<(), String> {
    for n in 1..=REHEARSALS {
        let len = rehearsed.bytes.len();
        let most = len.saturating_add(growth(len));
        match begin(host, domid, handover, most, &save)? {
            Begun::Moved(saved, made, times) => {
                host.say(format!("domain {domid} is destroyed; from here on there is no way back"));
                return finish(host, &saved, &made, Some(times));
            }
            Begun::Grown(state) if n < REHEARSALS => {
                let Saved { new, sizes, .. } = save(&state);
                rehearse(host, &new, image, sizes, &state)?;
                rehearsed = state;
            }
            Begun::Grown(_) => break,
        }
    }
    Err(format!(
        "the state has grown by more than was rehearsed, {REHEARSALS} times: somebody writes very much; domain {domid} goes on"
    ))
}

/// Goes on where another program has ended behind the third step.
///
/// # Errors
/// What is to be done.
pub fn again(host: &mut impl Host, saved: &Saved) -> Result<(), String> {
    let domid = saved.domid;
    let found = host.info(domid)?.filter(|found| found.flags & info::DYING == 0);
    if let Some(found) = found {
        if found.new != saved.new {
            return Err(format!(
                "domain {domid} is another one now, which nobody has put in the place of the xenstore: the state that was \
                 kept is of no use any more"
            ));
        }
        if host.serves(domid)? {
            if found.shutdown() == Some(SHUTDOWN_SUSPEND) {
                host.resume(domid)?;
                host.say(format!("domain {domid} was not destroyed yet, and goes on"));
                return host.keep(None);
            }
            host.say(format!("domain {domid} serves"));
            return conclude(host, saved);
        }
        // The new one, before it served.
        host.destroy(domid)?;
    }
    // It may map a page of what is left of the old one. If it cannot be ended, it may as well map nothing.
    if let Err(why) = host.stop_console() {
        host.say(why);
    }
    let image = Image::parse(&saved.image).map_err(|why| why.to_string());
    let made = image.and_then(|image| contents(&image, &saved.line, &saved.module, saved.sizes));
    let result = made.and_then(|made| finish(host, saved, &made, None));
    host.start_console();
    result
}

/// The new domain serves: there is nothing to go on with any more. What the store says of it is a smaller thing.
fn conclude(host: &mut impl Host, saved: &Saved) -> Result<(), String> {
    host.keep(None)?;
    if let Err(why) = host.note(saved.domid, saved.sizes) {
        host.say(format!(
            "it serves, but what has changed could not be written into the store: {why}"
        ));
    }
    Ok(())
}

fn check(domid: u16, old: &Details) -> Result<(), String> {
    let what = match old.flags {
        flags if flags & info::DYING != 0 => "is being destroyed",
        flags if flags & info::HVM_GUEST == 0 => "cannot be the xenstore: it is no PVH domain",
        flags if flags & info::SHUTDOWN != 0 => "is shut down: the guard has it go on",
        flags if flags & info::PAUSED != 0 => "is paused: unpause it first",
        _ if domid == 0 => "cannot be the xenstore",
        _ => return Ok(()),
    };
    Err(format!("domain {domid} {what}"))
}

/// What the plan says, else what the old domain has.
fn sizes(plan: &Plan, old: &Details) -> Sizes {
    let special = SPECIAL.end.saturating_sub(SPECIAL.start);
    let now = old.pages.saturating_sub(special).div_ceil(MIB);
    let most = old.max_pages.saturating_sub(special).checked_div(MIB).unwrap_or(0);
    let maxmem = plan.maxmem.unwrap_or_else(|| most.max(plan.memory.unwrap_or(0)));
    Sizes { memory: plan.memory.unwrap_or(now.min(maxmem)), maxmem }
}

/// The first step: another domain takes a copy of this state over.
fn rehearse(
    host: &mut impl Host,
    new: &NewDomain,
    image: &Image<'_>,
    sizes: Sizes,
    state: &State,
) -> Result<(), String> {
    let began = host.now();
    let made = contents(image, &state.line, &state.module(true), sizes)?;
    let new = NewDomain { handle: REHEARSAL_HANDLE, ..*new };
    let built = host
        .build(None, &new, sizes, &made)
        .map_err(|why| format!("a domain for the rehearsal cannot be built: {why}"))?;
    let result = run_rehearsal(host, built);
    let destroyed = host.destroy(built).and_then(|()| wait_gone(host, built));
    result.map_err(|why| format!("the rehearsal failed, and nothing has changed: {why}"))?;
    let cleared = destroyed.and_then(|()| host.clear());
    cleared.map_err(|why| format!("the domain of the rehearsal, {built}: {why}"))?;
    let took = host.now().saturating_sub(began).as_millis();
    let Sizes { memory, maxmem } = sizes;
    host.say(format!(
        "rehearsed in {took} ms, with {memory} MiB of at most {maxmem} and {} bytes of state",
        state.bytes.len(),
    ));
    Ok(())
}

fn run_rehearsal(host: &mut impl Host, domid: u16) -> Result<(), String> {
    host.unpause(domid)?;
    let end = host.now().saturating_add(REHEARSAL_PATIENCE);
    loop {
        let found = host.info(domid)?.ok_or("somebody has destroyed its domain")?;
        match found.shutdown() {
            Some(SHUTDOWN_POWEROFF) => return Ok(()),
            Some(_) => return Err(host.last_words(domid)),
            None if host.now() > end => {
                let (seconds, words) = (REHEARSAL_PATIENCE.as_secs(), host.last_words(domid));
                return Err(format!("no end within {seconds} s; it has last said: {words}"));
            }
            None => host.sleep(LOOK),
        }
    }
}

/// Has a domain that has stopped go on, and waits until it says so.
fn go_on(host: &mut impl Host, domid: u16) -> Result<(), String> {
    host.resume(domid)?;
    let end = host.now().saturating_add(PATIENCE);
    while host.answer().is_none() {
        if host.now() > end {
            return Err(format!("domain {domid} was resumed and does not answer"));
        }
        host.sleep(LOOK);
    }
    Ok(())
}

/// Has the server stop, and takes its state. If that fails, it goes on.
fn take(host: &mut impl Host, domid: u16, handover: u32) -> Result<State, String> {
    let stopped = host.ask(domid, handover).and_then(|()| wait_stopped(host, domid));
    if let Err(why) = stopped {
        host.take_back(domid);
        // It may have stopped just before.
        let found = host.info(domid).ok().flatten();
        let waits = found.is_some_and(|found| found.shutdown() == Some(SHUTDOWN_SUSPEND));
        return Err(if waits { back(host, domid, &why) } else { why });
    }
    read(host, domid).map_err(|why| back(host, domid, &why))
}

/// Until the server has stopped.
fn wait_stopped(host: &mut impl Host, domid: u16) -> Result<(), String> {
    let end = host.now().saturating_add(PATIENCE);
    loop {
        let found = host.info(domid)?.ok_or_else(|| format!("domain {domid} is gone"))?;
        match found.shutdown() {
            Some(SHUTDOWN_SUSPEND) => return Ok(()),
            Some(reason) => {
                let name = usize::try_from(reason).ok().and_then(|n| SHUTDOWN_NAMES.get(n));
                return Err(format!("domain {domid} was shut down: {}", name.unwrap_or(&"?")));
            }
            None => {}
        }
        // Looked at behind the state: the answer comes from there if it has gone on.
        if let Some(answer) = host.answer() {
            let why = answer.unwrap_or_else(|why| why);
            return Err(format!("the xenstore does not let go of its state: {why}"));
        }
        if host.now() > end {
            return Err(format!("the xenstore has not stopped within {} s", PATIENCE.as_secs()));
        }
        host.sleep(LOOK);
    }
}

/// The way back. Says why it was taken.
fn back(host: &mut impl Host, domid: u16, why: &str) -> String {
    match go_on(host, domid) {
        Ok(()) => format!("{why}; domain {domid} goes on"),
        Err(and) => format!("{why}; and {and}"),
    }
}

/// Reads and checks what a domain that has stopped offers.
fn read(host: &mut impl Host, domid: u16) -> Result<State, String> {
    let (offer, mut bytes) = host.offer(domid)?;
    let Offer { stream_len, private_len, digest, .. } = offer;
    let size = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
    let state_len = size(stream_len.saturating_add(private_len));
    if bytes.len() < state_len {
        return Err("the region is shorter than the offer says".to_owned());
    }
    let line = bytes.split_off(state_len);
    if Digest::of(&bytes) != digest {
        return Err("the state is damaged: its digest differs".to_owned());
    }
    let stream = bytes.get(..size(stream_len)).unwrap_or_default();
    let mut ports = Vec::new();
    for record in Reader::new(stream).map_err(|why| why.to_string())? {
        let Record::Connection(connection) = record.map_err(|why| why.to_string())? else {
            continue;
        };
        let Endpoint::Ring { domid: other, port, .. } = connection.endpoint else { continue };
        // Without a peer it is the same as a guest that is gone, and the server will find out.
        if let Some((peer, remote)) = host.peer(domid, port.0)?
            && peer == other.0
        {
            ports.push(Port { domid: other, old: port, remote });
        }
    }
    // Without it nobody in dom0 would be served by the new one.
    if !ports.iter().any(|port| port.domid == DomId(0)) {
        return Err("dom0's own port is bound to nothing".to_owned());
    }
    Ok(State { ports, stream_len, private_len, digest, bytes, line })
}

/// What became of the second and third step.
enum Begun {
    /// The old domain is destroyed.
    Moved(Saved, Contents, Times),
    /// It goes on, since its state is larger than what was rehearsed.
    Grown(State),
}

/// Steps two and three, unless the state has more than so many bytes.
fn begin(
    host: &mut impl Host,
    domid: u16,
    handover: u32,
    most: usize,
    save: impl Fn(&State) -> Saved,
) -> Result<Begun, String> {
    let asked = host.now();
    let state = take(host, domid, handover)?;
    if state.bytes.len() > most {
        go_on(host, domid)?;
        return Ok(Begun::Grown(state));
    }
    let saved = save(&state);
    // Whatever can be found out or made is so now: behind the third step nothing large is allocated any more.
    let made = Image::parse(&saved.image)
        .map_err(|why| why.to_string())
        .and_then(|image| contents(&image, &saved.line, &saved.module, saved.sizes));
    let kept = made.and_then(|made| host.keep(Some(&saved)).map(|()| made));
    let made = kept.map_err(|why| back(host, domid, &why))?;
    let times = Times { stopped: asked, taken: host.now() };
    // Somebody may have had it go on, and then what was taken is old.
    let waits =
        |found: Details| found.new == saved.new && found.shutdown() == Some(SHUTDOWN_SUSPEND);
    let why = match host.info(domid) {
        Ok(found) if found.is_some_and(waits) => None,
        Ok(_) => Some(format!("somebody else has had domain {domid} go on, or has destroyed it")),
        Err(why) => Some(back(host, domid, &why)),
    };
    if let Some(why) = why {
        host.keep(None)?;
        return Err(why);
    }
    if let Err(why) = host.destroy(domid) {
        let found = host.info(domid)?;
        if found.is_some_and(|found| found.flags & info::DYING == 0) {
            // Refused, it is what it was. What is kept is forgotten only when it goes on.
            let why = back(host, domid, &format!("it cannot be destroyed: {why}"));
            host.keep(None)?;
            return Err(why);
        }
    }
    Ok(Begun::Moved(saved, made, times))
}

/// Until a domid is free.
fn wait_gone(host: &mut impl Host, domid: u16) -> Result<(), String> {
    let end = host.now().saturating_add(PATIENCE);
    while host.info(domid)?.is_some() {
        if host.now() > end {
            return Err(
                "it is destroyed and not gone: some program still maps its memory, such as xenconsoled, xenconsole or \
                 a debugger; end that, then: xenstore-stubdom replace --again"
                    .to_owned(),
            );
        }
        host.sleep(LOOK);
    }
    Ok(())
}

/// The fourth step: there is no domain of that domid any more, or it is about to go.
fn finish(
    host: &mut impl Host,
    saved: &Saved,
    made: &Contents,
    times: Option<Times>,
) -> Result<(), String> {
    let domid = saved.domid;
    let (mut why, mut pause) = (String::new(), FIRST_PAUSE);
    for n in 1..=TRIES {
        let begun = host.now();
        wait_gone(host, domid)?;
        let gone = host.now();
        match try_once(host, saved, made) {
            Ok(at) => {
                if times.is_some() {
                    wait_answer(host, domid)?;
                }
                let ms = |from: Duration, to: Duration| to.saturating_sub(from).as_millis();
                let served = host.now();
                host.say(match times {
                    Some(Times { stopped, taken }) => format!(
                        "domain {domid} is another one and serves; nobody was served for {} ms: {} to write and copy \
                         the state, {} to destroy the old one, {} to build the new one, {} until it served",
                        ms(stopped, served),
                        ms(stopped, taken),
                        ms(taken, gone),
                        ms(gone, at),
                        ms(at, served)
                    ),
                    None => format!("domain {domid} serves, {} ms after this began", ms(begun, served)),
                });
                return conclude(host, saved);
            }
            Err(error) => {
                host.say(format!("try {n} of {TRIES}: {error}"));
                why = error;
            }
        }
        if n < TRIES {
            host.sleep(pause);
            pause = pause.saturating_mul(4);
        }
    }
    Err(format!(
        "domain {domid} could not be built again ({why}). Nobody serves. The state is safe; when the cause is mended: \
         xenstore-stubdom replace --again"
    ))
}

/// Until the new domain has answered the request that has stopped the old one: dom0 is served, then.
fn wait_answer(host: &mut impl Host, domid: u16) -> Result<(), String> {
    let end = host.now().saturating_add(PATIENCE);
    while host.answer().is_none() {
        if host.now() > end {
            return Err(format!(
                "domain {domid} has begun to serve, but has not answered dom0 within {} s: look at its console",
                PATIENCE.as_secs()
            ));
        }
        host.sleep(LOOK);
    }
    Ok(())
}

/// Builds it and has it serve; says when it began. If that fails it is destroyed.
fn try_once(host: &mut impl Host, saved: &Saved, made: &Contents) -> Result<Duration, String> {
    let domid = saved.domid;
    host.build(Some(domid), &saved.new, saved.sizes, made)?;
    let begun = host.now();
    let result = start(host, domid);
    if result.is_err() {
        // If it cannot be destroyed either, that is said when the domid is wanted again.
        let _ = host.destroy(domid);
    }
    result.map(|()| begun)
}

fn start(host: &mut impl Host, domid: u16) -> Result<(), String> {
    host.hear(domid)?;
    host.unpause(domid)?;
    let end = host.now().saturating_add(PATIENCE);
    // What cannot be found out now may be found out later.
    while !host.serves(domid).unwrap_or(false) {
        let found = host.info(domid)?.ok_or("somebody has destroyed it")?;
        if found.shutdown().is_some() {
            return Err(host.last_words(domid));
        }
        if host.now() > end {
            return Err(format!("it does not serve within {} s", PATIENCE.as_secs()));
        }
        host.sleep(LOOK);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
