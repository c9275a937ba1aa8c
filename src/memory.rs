//! Memory of this computer: how much the process had in use, how much there is to be had, and the refusal of runs that need more.

use crate::error::Error;
use meshloom_simulator::Machine;
use meshloom_simulator::engine;
use meshloom_simulator::program::Program;

/// Most bytes that the process had in use so far. `None` where the system does not tell (it does on Linux).
pub fn peak() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Bytes that may still be had without swapping. `None` where the system does not tell.
pub fn available() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// The number behind a field of one of these files, which count in KiB.
fn kilobytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    line.split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// Refuses a simulation that is predicted to need more memory than there is.
///
/// # Errors
/// An [`Error::Input`] that says how much, and what would help.
pub fn refuse_large(program: &Program, machine: &Machine, available: Option<u64>) -> Result<(), Error> {
    let (Some(there), need) = (available, engine::memory(program, machine)) else {
        return Ok(());
    };
    if need.total() <= there {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let mesh = &machine.mesh;
    let helps = if need.pes >= need.sram && need.pes >= need.streams {
        format!(
            "most of it is for the {}x{} PEs and their counters in {} stage(s): a smaller mesh (--set mesh.width=, --set mesh.height=) or fewer stages (--stages auto)",
            mesh.width,
            mesh.height,
            program.stages.len()
        )
    } else if need.sram >= need.streams {
        "most of it is what PEs have in SRAM: a smaller model, --dtype f16, or more stages (--stages layer)"
            .into()
    } else {
        "most of it is what enters and leaves at the edge: fewer --items, a smaller --batch, or fewer stages (--stages auto)".into()
    };
    Err(Error::Input(format!(
        "the simulation needs about {:.1} GiB of memory (predicted), and there are {:.1} GiB. {helps}",
        gib(need.total()),
        gib(there)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_kilobytes() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 12 kB\n";
        assert_eq!(kilobytes(text, "VmHWM:"), Some(2 << 20));
        assert_eq!(kilobytes(text, "VmSwap:"), None);
    }

    /// What is in use was never more than the peak, and there is some to be had.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_tells() {
        let before = peak().expect("Linux tells");
        let filled = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak().expect("Linux tells") >= before.max(filled.len() as u64));
        assert!(available().expect("Linux tells") > 0);
    }
}
