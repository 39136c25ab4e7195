//! `xenstore-stubdom replace`: its command line.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use xenstore_guard::host::{PID_FILE, domid_in};
use xenstore_guard::lines::Lines;
use xenstore_guard::mover::{Claim, Mover, Step, saved};
use xenstore_guard::replace::{Host, Plan, again, replace};

const USAGE: &str = "\
usage: xenstore-stubdom replace [--memory MB] [--maxmem MB] [--image FILE] [--config FILE] [--rehearse]
       xenstore-stubdom replace --again [--memory MB] [--maxmem MB] [--image FILE]

Puts another domain in the place of the one that is this host's xenstore: under the same domid, with all that it knows.
Guests go on; nobody is served for some tens of milliseconds. It is rehearsed first, and if anything is wrong then,
nothing has happened.

  --memory MB      memory that the new domain gets at once (what the old one has now)
  --maxmem MB      memory that it may have in the end (what the old one may)
  --image FILE     its image, an ELF file (/usr/lib/xenstore-stubdom/xenstore-stubdom)
  --config FILE    takes memory, maxmem and kernel from a configuration of xl, where the options above say nothing
  --rehearse       only the rehearsal
  --again          goes on where another one has ended behind the point of no return; with other memory or another image
                   than it was begun with, if that is what was wrong
  --pid-file FILE  where the toolstack has written down which domain it is (/run/xen/xenstored.pid)

Status: 0 if the new domain serves; 1 if the old one goes on; 3 if nobody serves.
";

/// How long the last lines are waited for, if nobody reads them.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// The image of the package.
const IMAGE: &str = "/usr/lib/xenstore-stubdom/xenstore-stubdom";

/// What was asked for.
#[derive(Default)]
struct Options {
    memory: Option<u64>,
    maxmem: Option<u64>,
    image: Option<PathBuf>,
    config: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    rehearse: bool,
    again: bool,
    ends_behind: Option<Step>,
}

/// Reads the words of the command line; `None` if they are wrong.
fn parse(mut words: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        let mut number = || words.next()?.parse().ok().filter(|n| (1..1 << 20).contains(n));
        match word.as_str() {
            "--memory" => options.memory = Some(number()?),
            "--maxmem" => options.maxmem = Some(number()?),
            "--image" => options.image = Some(words.next()?.into()),
            "--config" => options.config = Some(words.next()?.into()),
            "--pid-file" => options.pid_file = Some(words.next()?.into()),
            "--rehearse" => options.rehearse = true,
            "--again" => options.again = true,
            // For tests of what a program leaves that ends there.
            "--end-behind" => {
                options.ends_behind = Some(match words.next()?.as_str() {
                    "rehearsing" => Step::Rehearsing,
                    "created" => Step::Created,
                    "taken" => Step::Taken,
                    "destroyed" => Step::Destroyed,
                    "built" => Step::Built,
                    _ => return None,
                });
            }
            _ => return None,
        }
    }
    Some(options)
}

pub(crate) fn main(words: impl Iterator<Item = String>) -> ExitCode {
    let words: Vec<String> = words.collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let Some(options) = parse(words.into_iter()) else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    let lines = Lines::to(std::io::stderr());
    let status = match run(&options, &lines) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            lines.say(format!("xenstore-stubdom replace: {why}"));
            // What is kept says that there is no old domain any more.
            if saved().is_ok() { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    };
    lines.finish(READ_WITHIN);
    status
}

fn run(options: &Options, lines: &Lines) -> Result<(), String> {
    let _claim = Claim::take().map_err(|error| format!("somebody else replaces it: {error}"))?;
    let mut host = Mover::open(lines, options.ends_behind)?;
    if options.again {
        let mut saved = saved()?;
        saved.sizes.memory = options.memory.unwrap_or(saved.sizes.memory);
        saved.sizes.maxmem = options.maxmem.unwrap_or(saved.sizes.maxmem);
        if let Some(image) = &options.image {
            saved.image =
                std::fs::read(image).map_err(|error| format!("{}: {error}", image.display()))?;
        }
        host.ignore_signals();
        return again(&mut host, &saved);
    }
    if let Ok(saved) = saved() {
        return Err(format!(
            "domain {} was being replaced, and that did not end: xenstore-stubdom replace --again",
            saved.domid
        ));
    }
    let pid_file = options.pid_file.as_deref().unwrap_or(Path::new(PID_FILE));
    let text = std::fs::read_to_string(pid_file)
        .map_err(|error| format!("{}: {error}", pid_file.display()))?;
    let domid = domid_in(&text)
        .ok_or_else(|| format!("{} names no xenstore domain", pid_file.display()))?;
    let config = options.config.as_deref().map(read_config).transpose()?.unwrap_or_default();
    let image = options.image.clone().or(config.kernel).unwrap_or_else(|| IMAGE.into());
    let plan = Plan {
        image: std::fs::read(&image).map_err(|error| format!("{}: {error}", image.display()))?,
        memory: options.memory.or(config.memory),
        maxmem: options.maxmem.or(config.maxmem),
        only_rehearse: options.rehearse,
    };
    replace(&mut host, domid, &plan)
}

/// What a configuration of xl says of that.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Config {
    memory: Option<u64>,
    maxmem: Option<u64>,
    kernel: Option<PathBuf>,
}

/// Has xl read a configuration.
fn read_config(file: &Path) -> Result<Config, String> {
    let shown = file.display();
    let mut xl = Command::new("xl");
    xl.args(["create", "-q", "--dryrun"]).arg(file).stdin(Stdio::null());
    let output = xl.output().map_err(|error| format!("xl: {error}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("xl does not understand {shown}: {why}"));
    }
    Ok(in_json(&String::from_utf8_lossy(&output.stdout)))
}

/// What `xl create --dryrun` prints is JSON with one key a line.
fn in_json(text: &str) -> Config {
    let value = |key: &str| {
        let key = format!("\"{key}\":");
        text.lines().find_map(|line| {
            Some(line.trim().strip_prefix(&key)?.trim().trim_end_matches(',').to_owned())
        })
    };
    let mib = |key: &str| Some(value(key)?.parse::<u64>().ok()?.div_ceil(1024));
    let kernel = value("kernel").map(|path| PathBuf::from(path.trim_matches('"')));
    Config { memory: mib("target_memkb"), maxmem: mib("max_memkb"), kernel }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<Options> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_read_or_refused() {
        let options = of("--memory 16 --maxmem 64 --image /x --rehearse").unwrap();
        assert_eq!((options.memory, options.maxmem), (Some(16), Some(64)));
        assert_eq!(options.image.as_deref(), Some(Path::new("/x")));
        assert!(options.rehearse && !options.again);
        for bad in ["--memory", "--memory 0", "--memory x", "--maxmem -1", "x", "--end-behind x"] {
            assert!(of(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_xl_has_read_is_found() {
        let text = "{\n    \"domid\": null,\n    \"config\": {\n        \"b_info\": {\n            \"max_memkb\": 65536,\n            \
                    \"target_memkb\": 8192,\n            \"kernel\": \"/boot/x\",\n        }\n";
        let config = in_json(text);
        assert_eq!((config.memory, config.maxmem), (Some(8), Some(64)));
        assert_eq!(config.kernel.as_deref(), Some(Path::new("/boot/x")));
        assert_eq!(in_json("{}"), Config::default());
    }
}
