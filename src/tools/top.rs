//! `top`: what the store does, on a terminal of 80 columns or as text.

use crate::collect::{Collector, Domain, Snapshot};
use crate::link::Link;
use crate::text::{bytes, count, cut, duration, printable, rate};
use anyhow::{Context as _, Result, bail};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use std::cmp::Reverse;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

/// The least time between two CONTROL requests.
pub const PAUSE: Duration = Duration::from_secs(1);

/// How often the keyboard is looked at.
const TICK: Duration = Duration::from_millis(200);

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Ascending, as all that are no figures.
    Domid,
    /// Ascending.
    Name,
    /// Requests in a second, the most first; so for all that follow.
    Requests,
    /// Events in a second.
    Events,
    /// Nodes.
    Nodes,
    /// Watches.
    Watches,
    /// Bytes.
    Memory,
    /// The quota that is used most.
    Quota,
    /// Messages that are not read.
    Waiting,
    /// Those that are not served first.
    State,
}

impl Sort {
    /// All of them, with the key and the word that choose each.
    pub const ALL: [(Self, char, &'static str); 10] = [
        (Self::Domid, 'd', "domid"),
        (Self::Name, 'n', "name"),
        (Self::Requests, 'r', "requests"),
        (Self::Events, 'e', "events"),
        (Self::Nodes, 'o', "nodes"),
        (Self::Watches, 'w', "watches"),
        (Self::Memory, 'm', "memory"),
        (Self::Quota, 'u', "quota"),
        (Self::Waiting, 'p', "waiting"),
        (Self::State, 's', "state"),
    ];

    /// The one with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, _, each)| *each == word).map(|(sort, _, _)| sort)
    }
}

/// What is shown, and how.
#[derive(Clone, Debug)]
pub struct View {
    /// What is known of the store.
    pub snapshot: Snapshot,
    /// The order of rows.
    pub sort: Sort,
    /// The other way round.
    pub reverse: bool,
    /// Rows above the first one shown.
    pub scroll: usize,
    /// Why nothing new comes.
    pub trouble: Option<String>,
}

impl View {
    /// An empty view in this order.
    #[must_use]
    pub fn new(sort: Sort, reverse: bool) -> Self {
        Self { snapshot: Snapshot::default(), sort, reverse, scroll: 0, trouble: None }
    }

    /// The domains in their order.
    fn sorted(&self) -> Vec<&Domain> {
        let mut rows = self.snapshot.domains.values().collect::<Vec<_>>();
        // Not comparable are only numbers that are none, of which there are none here.
        let figure = |rate: Option<f64>| Reverse(ordered(rate.unwrap_or(-1.0)));
        match self.sort {
            Sort::Domid => {}
            Sort::Name => rows.sort_by(|a, b| a.name.cmp(&b.name)),
            Sort::Requests => rows.sort_by_key(|d| figure(d.requests.per_second)),
            Sort::Events => rows.sort_by_key(|d| figure(d.events.per_second)),
            Sort::Nodes => rows.sort_by_key(|d| Reverse(d.row.number("nodes"))),
            Sort::Watches => rows.sort_by_key(|d| Reverse(d.row.number("watches"))),
            Sort::Memory => rows.sort_by_key(|d| Reverse(d.row.number("memory"))),
            Sort::Waiting => rows.sort_by_key(|d| Reverse(d.row.number("waiting"))),
            Sort::State => rows.sort_by_key(|d| Reverse(d.row.state.clone())),
            Sort::Quota => {
                rows.sort_by_key(|d| {
                    Reverse(self.snapshot.usage(&d.row).map(|usage| usage.percent))
                });
            }
        }
        if self.reverse {
            rows.reverse();
        }
        rows
    }

    /// The lines above the table, each at most 80 wide.
    #[must_use]
    pub fn head(&self) -> Vec<String> {
        let Snapshot { server, requests, events, hypercalls, domains, pages } = &self.snapshot;
        let number = |key: &str| server.number(key);
        let used = number("heap_used");
        let memory = match server.numbers.get("heap_limit") {
            Some(limit) => {
                let percent = used.saturating_mul(100).checked_div(*limit).unwrap_or(0);
                format!("{} of {} ({percent} %)", bytes(used), bytes(*limit))
            }
            None => "of the host".to_owned(),
        };
        let seen = match pages {
            0 => "not all seen yet".to_owned(),
            1 => "seen every second".to_owned(),
            pages => format!("each seen every {pages} s"),
        };
        vec![
            format!(
                "{}  up {}  live updates {}  restarts {}",
                server.image,
                duration(number("uptime_ms")),
                number("live_updates"),
                number("restarts"),
            ),
            format!(
                "requests {}/s  events {}/s  hypercalls {}/s  dropped {}  refused {}",
                rate(requests.per_second),
                rate(events.per_second),
                rate(hypercalls.per_second),
                count(number("dropped")),
                count(number("refused")),
            ),
            format!(
                "memory {memory}  nodes {}  watches {}  transactions {}",
                count(number("nodes")),
                count(number("watches")),
                count(number("transactions")),
            ),
            format!("request time {}  domains {}, {seen}", latency(&server.buckets), domains.len()),
        ]
    }

    /// One row of the table.
    fn line(&self, domain: &Domain) -> String {
        let row = &domain.row;
        let usage = match self.snapshot.usage(row) {
            Some(usage) => {
                format!("{}{}", usage.percent.min(999), usage.quota.get(..1).unwrap_or(""))
            }
            None => "-".to_owned(),
        };
        let state = if row.state.is_empty() { "ok" } else { &row.state };
        let name = cut(&printable(&domain.name).replace(' ', "\\x20"), 15);
        format!(
            "{:>5} {:<15} {:>6} {:>6} {:>6} {:>6} {:>6} {:>5} {:>5} {}",
            row.domid,
            if name.is_empty() { "-" } else { &name },
            rate(domain.requests.per_second),
            rate(domain.events.per_second),
            count(row.number("nodes")),
            count(row.number("watches")),
            bytes(row.number("memory")),
            usage,
            count(row.number("waiting")),
            cut(state, 11),
        )
    }

    /// Everything as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.head().join("\n");
        // Writing to a string does not fail.
        let _ = write!(text, "\n\n{TABLE}\n");
        for domain in self.sorted() {
            let _ = writeln!(text, "{}", self.line(domain));
        }
        text
    }

    /// Draws a screen.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let areas = Layout::vertical([
            Constraint::Length(5),
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .split(frame.area());
        let [head, title, table, foot] = areas.as_ref() else { return };
        let mut lines = self.head().into_iter().map(Line::from).collect::<Vec<_>>();
        lines.push(match &self.trouble {
            Some(why) => {
                Line::styled(printable(why.as_bytes()), Style::new().add_modifier(Modifier::BOLD))
            }
            None => Line::from(""),
        });
        frame.render_widget(Paragraph::new(lines), *head);
        let reversed = Style::new().add_modifier(Modifier::REVERSED);
        frame.render_widget(Paragraph::new(TABLE).style(reversed), *title);
        let sorted = self.sorted();
        let room = usize::from(table.height);
        let first = self.scroll.min(sorted.len().saturating_sub(room));
        let rows = sorted.iter().skip(first).take(room).map(|domain| {
            let style = match domain.row.state.as_str() {
                "" | "absent" => Style::new(),
                _ => Style::new().add_modifier(Modifier::BOLD),
            };
            Line::styled(self.line(domain), style)
        });
        frame.render_widget(Paragraph::new(rows.collect::<Vec<_>>()), *table);
        frame.render_widget(Paragraph::new(KEYS).style(reversed), *foot);
    }

    /// Does what a key says; `false` if it is over.
    pub fn press(&mut self, key: KeyEvent) -> bool {
        let last = self.snapshot.domains.len().saturating_sub(1);
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('R') => self.reverse = !self.reverse,
            KeyCode::Char(letter) => {
                if let Some((sort, _, _)) = Sort::ALL.into_iter().find(|(_, key, _)| *key == letter)
                {
                    (self.sort, self.scroll) = (sort, 0);
                }
            }
            KeyCode::Down => self.scroll = self.scroll.saturating_add(1).min(last),
            KeyCode::Up => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::PageDown => self.scroll = self.scroll.saturating_add(10).min(last),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(10),
            KeyCode::Home => self.scroll = 0,
            KeyCode::End => self.scroll = last,
            _ => {}
        }
        true
    }
}

/// The names of the columns; the last is as wide as it needs to be.
const TABLE: &str =
    "DOMID NAME             REQ/S   EV/S  NODES WATCHS MEMORY QUOTA  WAIT STATE      ";

/// What the keys do.
const KEYS: &str =
    "sort: d n r e nOdes w m qUota waiting(p) s  R reverse  arrows scroll  q quit     ";

/// A number that has an order.
fn ordered(rate: f64) -> u64 {
    // Thousandths, as far as they matter; -1 comes last.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "negative and huge numbers are cut off on purpose"
    )]
    let thousandths = ((rate + 1.0) * 1000.0).max(0.0) as u64;
    thousandths
}

/// How long requests take: the bounds below which half of them, and 99 of 100, were.
fn latency(buckets: &[(Option<u64>, u64)]) -> String {
    let total = buckets.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
    if total == 0 {
        return "-".to_owned();
    }
    let below = |percent: u64| {
        let mut sum = 0_u64;
        for (bound, count) in buckets {
            sum = sum.saturating_add(*count);
            if sum.saturating_mul(100) >= total.saturating_mul(percent) {
                return bound.map_or("long".to_owned(), |bound| format!("<{bound} us"));
            }
        }
        "-".to_owned()
    };
    format!("half {}, 99% {}", below(50), below(99))
}

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// Text instead of a screen.
    pub batch: bool,
    /// So many times, and then no more.
    pub count: Option<u64>,
    /// How long between two looks.
    pub delay: Duration,
    /// The order of rows.
    pub sort: Sort,
    /// The other way round.
    pub reverse: bool,
}

/// Runs until it is over.
///
/// # Errors
/// The store cannot be reached, or the terminal.
pub fn run(options: &Options) -> Result<()> {
    let delay = options.delay.max(PAUSE);
    let mut link = Link::open()?;
    let mut collector = Collector::default();
    let mut view = View::new(options.sort, options.reverse);
    if options.batch {
        // Rates need two looks.
        collector.round(&mut link, PAUSE)?;
        let mut left = options.count;
        while left != Some(0) {
            std::thread::sleep(delay);
            collector.round(&mut link, PAUSE)?;
            view.snapshot = collector.snapshot.clone();
            let mut out = std::io::stdout().lock();
            if writeln!(out, "{}", view.text()).and_then(|()| out.flush()).is_err() {
                // Nobody reads any more.
                return Ok(());
            }
            left = left.map(|left| left.saturating_sub(1));
        }
        return Ok(());
    }
    if !std::io::stdout().is_terminal() {
        bail!("this is no terminal; --batch writes text");
    }
    // What is wrong from the beginning is said without a screen.
    collector.step(&mut link)?;
    view.snapshot = collector.snapshot.clone();
    let news = watch(link, collector, delay);
    let mut terminal = ratatui::try_init().context("the terminal")?;
    let result = show(&mut terminal, &mut view, &news, options.count);
    ratatui::restore();
    result
}

/// Looks at the store in a thread of its own, so that keys work while it does not answer.
fn watch(mut link: Link, mut collector: Collector, delay: Duration) -> Receiver<Result<Snapshot>> {
    let (send, news) = channel();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(delay);
            let result = collector.step(&mut link);
            let is_lost = result.is_err();
            if send.send(result.map(|()| collector.snapshot.clone())).is_err() {
                return;
            }
            if is_lost {
                // A store that was restarted is a new one.
                if let Ok(again) = Link::open() {
                    link = again;
                }
            }
        }
    });
    news
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    news: &Receiver<Result<Snapshot>>,
    count: Option<u64>,
) -> Result<()> {
    let mut left = count;
    let mut last_news = Instant::now();
    loop {
        terminal.draw(|frame| view.draw(frame)).context("the terminal")?;
        if event::poll(TICK).context("the keyboard")?
            && let Event::Key(key) = event::read().context("the keyboard")?
            && key.kind != KeyEventKind::Release
            && !view.press(key)
        {
            return Ok(());
        }
        match news.try_recv() {
            Ok(Ok(snapshot)) => {
                (view.snapshot, view.trouble) = (snapshot, None);
                last_news = Instant::now();
                left = left.map(|left| left.saturating_sub(1));
                if left == Some(0) {
                    return Ok(());
                }
            }
            Ok(Err(why)) => view.trouble = Some(format!("{why:#}")),
            Err(TryRecvError::Empty) => {
                let silent = last_news.elapsed().as_secs();
                if silent >= 5 && view.trouble.is_none() {
                    view.trouble = Some(format!("no answer for {silent} s"));
                }
            }
            Err(TryRecvError::Disconnected) => bail!("the collector ended"),
        }
    }
}
