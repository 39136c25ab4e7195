//! Lines for people, without ever waiting for whoever reads them: a terminal that is stopped, a pipe that is full or a journal
//! that hangs must not stop a program that the host waits for.

use std::io::Write;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Lines that wait; what comes then is dropped.
const WAITING: usize = 64;

/// What the thread that writes is given.
enum Word {
    Line(String),
    /// Somebody waits for all before.
    End(SyncSender<()>),
}

/// Where lines go.
#[derive(Clone, Debug)]
pub struct Lines {
    sender: SyncSender<Word>,
}

impl Lines {
    /// To the standard error output, or to whatever else takes them.
    #[must_use]
    pub fn to(mut out: impl Write + Send + 'static) -> Self {
        let (sender, words) = sync_channel(WAITING);
        std::thread::spawn(move || {
            for word in words {
                match word {
                    // Whether anybody reads it does not matter.
                    Word::Line(line) => drop(writeln!(out, "{line}")),
                    Word::End(written) => drop(written.try_send(())),
                }
            }
        });
        Self { sender }
    }

    /// Says a line.
    pub fn say(&self, line: String) {
        let _ = self.sender.try_send(Word::Line(line));
    }

    /// Waits until all that was said is written, but not longer than that.
    pub fn finish(&self, longest: Duration) {
        let begun = Instant::now();
        let (written, is_written) = sync_channel(1);
        let mut end = Word::End(written);
        while let Err(TrySendError::Full(again)) = self.sender.try_send(end) {
            if begun.elapsed() >= longest {
                return;
            }
            end = again;
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = is_written.recv_timeout(longest.saturating_sub(begun.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::mpsc::{Receiver, channel};

    /// A pipe of which nobody reads until then.
    struct Stuck(Receiver<()>, std::sync::mpsc::Sender<Vec<u8>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whoever_does_not_read_stops_nobody() {
        let (read, reads) = channel();
        let (written, all) = channel();
        let lines = Lines::to(Stuck(reads, written));
        for n in 0..1000 {
            lines.say(n.to_string());
        }
        lines.finish(Duration::from_millis(20));
        // From here on it is read.
        drop(read);
        lines.finish(Duration::from_secs(60));
        drop(lines);
        let text: Vec<u8> = all.iter().flatten().collect();
        let text = String::from_utf8(text).unwrap();
        let count = text.lines().count();
        assert!(
            text.starts_with("0\n1\n2\n") && (WAITING..WAITING + 3).contains(&count),
            "{count}"
        );
    }
}
