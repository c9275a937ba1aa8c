//! Numbers as people read them: plain text, no locale.

/// A whole number in groups of three: `118 204`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(d);
    }
    out
}

/// A number that need not be whole, in groups of three, with one decimal if it isn't whole: `1 024`, `1 024.5`.
pub fn grouped_decimal(x: f64) -> String {
    let tenths = (x.max(0.0) * 10.0).round() as u64;
    match tenths % 10 {
        0 => grouped(tenths / 10),
        tenth => format!("{}.{tenth}", grouped(tenths / 10)),
    }
}

/// A mantissa of at least one and mostly three figures, no trailing decimals from 100 on.
fn mantissa(x: f64, decimals: usize) -> String {
    let decimals = if x >= 99.95 { 0 } else { decimals };
    format!("{x:.decimals$}")
}

/// A count with a decimal prefix: `512`, `21.4 k`, `5.5 M`, `1.2 G`.
pub fn quantity(n: u64) -> String {
    if n < 1000 {
        return n.to_string();
    }
    let mut x = n as f64 / 1e3;
    for unit in ["k", "M", "G", "T", "P"] {
        if x < 999.5 {
            return format!("{} {unit}", mantissa(x, 1));
        }
        x /= 1e3;
    }
    format!("{} E", mantissa(x, 1))
}

/// A number of weights, in millions with two decimals wherever that says something: `42`, `9 610`, `0.67 M`, `1.56 G`.
pub fn parameters(n: u64) -> String {
    match n {
        0..10_000 => grouped(n),
        10_000..999_500_000 => format!("{} M", mantissa(n as f64 / 1e6, 2)),
        _ => format!("{} G", mantissa(n as f64 / 1e9, 2)),
    }
}

/// A value with a unit and a prefix from femto to kilo: `139 us`, `1.3 mJ`, `0 s`.
pub fn si(x: f64, unit: &str) -> String {
    if x == 0.0 || !x.is_finite() {
        return format!("{x} {unit}");
    }
    let prefixes = [
        (1e3, "k"),
        (1.0, ""),
        (1e-3, "m"),
        (1e-6, "u"),
        (1e-9, "n"),
        (1e-12, "p"),
        (1e-15, "f"),
    ];
    // what would round to 1000 of a prefix is 1 of the next
    let (scale, prefix) = prefixes
        .into_iter()
        .find(|(scale, _)| x.abs() >= 0.9995 * scale)
        .unwrap_or((1e-15, "f"));
    let x = x / scale;
    let text = match x.abs() {
        a if a >= 99.95 => format!("{x:.0}"),
        a if a >= 9.995 => format!("{x:.1}"),
        _ => format!("{x:.2}"),
    };
    format!("{text} {prefix}{unit}")
}

/// A clock: `850 MHz`, `1.1 GHz`, `0.85 GHz` from 0.1 GHz on.
pub fn clock(hz: f64) -> String {
    let (x, unit) = match hz {
        h if h >= 1e8 => (h / 1e9, "GHz"),
        h if h >= 1e5 => (h / 1e6, "MHz"),
        h => (h, "Hz"),
    };
    let text = format!("{x:.3}");
    format!("{} {unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A share of 1 in per cent: `24 %`, `4.2 %`, `0.03 %`, `0 %`.
pub fn percent(x: f64) -> String {
    let p = x * 100.0;
    match p.abs() {
        a if a == 0.0 || a >= 9.95 => format!("{p:.0} %"),
        a if a >= 0.095 => format!("{p:.1} %"),
        a if a >= 0.0095 => format!("{p:.2} %"),
        _ => "<0.01 %".into(),
    }
}

/// Shares that add up to 1, in whole per cents that add up to 100 (largest remainders).
pub fn percents(shares: &[f64]) -> Vec<u32> {
    let exact: Vec<f64> = shares.iter().map(|s| s * 100.0).collect();
    let mut out: Vec<u32> = exact.iter().map(|e| e.floor() as u32).collect();
    let missing = 100u32.saturating_sub(out.iter().sum()) as usize;
    let mut order: Vec<usize> = (0..out.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
    for &i in order.iter().take(missing) {
        out[i] += 1;
    }
    out
}

/// A quotient: `2.32`, `17.0`, `1 204`.
pub fn ratio(x: f64) -> String {
    match x {
        x if !x.is_finite() => x.to_string(),
        x if x >= 999.5 => grouped(x.round() as u64),
        x if x >= 99.95 => format!("{x:.0}"),
        x if x >= 9.995 => format!("{x:.1}"),
        x => format!("{x:.2}"),
    }
}

/// An error to one figure: `3e-7`, `0`, `NaN`.
pub fn error(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        x.to_string()
    } else {
        format!("{x:.0e}")
    }
}

/// Bytes: `812 B`, `23.4 KiB`, `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    if n < 1024 {
        return format!("{n} B");
    }
    let mut x = n as f64 / 1024.0;
    for unit in ["KiB", "MiB", "GiB"] {
        if x < 1023.95 {
            return format!("{} {unit}", mantissa(x, 1));
        }
        x /= 1024.0;
    }
    format!("{} TiB", mantissa(x, 1))
}

/// Sparsity in per cent without needless decimals: `75%`, `87.5%`.
pub fn sparsity(x: f64) -> String {
    let text = format!("{:.2}", x * 100.0);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_grouped() {
        let all = [0, 7, 999, 1000, 118_204, u64::MAX].map(grouped);
        assert_eq!(
            all,
            ["0", "7", "999", "1 000", "118 204", "18 446 744 073 709 551 615"]
        );
        assert_eq!(
            [0.0, 1024.0, 1024.46, 999.96].map(grouped_decimal),
            ["0", "1 024", "1 024.5", "1 000"]
        );
    }

    #[test]
    fn quantities_take_the_next_prefix_in_time() {
        let all = [
            0,
            999,
            1000,
            21_437_000,
            5_499_999,
            99_949,
            99_950,
            999_499,
            999_500,
            1 << 60,
        ]
        .map(quantity);
        assert_eq!(
            all,
            [
                "0", "999", "1.0 k", "21.4 M", "5.5 M", "99.9 k", "100 k", "999 k", "1.0 M", "1.2 E"
            ]
        );
        let all = [42, 9610, 669_706, 25_557_032, 124_439_808, 1_557_611_200].map(parameters);
        assert_eq!(all, ["42", "9 610", "0.67 M", "25.56 M", "124 M", "1.56 G"]);
    }

    #[test]
    fn units_keep_three_figures() {
        let all = [1.390635e-4, 1.3e-3, 0.0, 0.99996, 60.02, 4.2e-16].map(|x| si(x, "s"));
        assert_eq!(all, ["139 us", "1.30 ms", "0 s", "1.00 s", "60.0 s", "0.42 fs"]);
        assert_eq!(
            [8.5e8, 1.1e9, 5e7, 1000.0].map(clock),
            ["0.85 GHz", "1.1 GHz", "50 MHz", "1000 Hz"]
        );
        assert_eq!(
            [0, 1023, 24_000, 1 << 20, u64::MAX].map(bytes)[..4],
            ["0 B", "1023 B", "23.4 KiB", "1.0 MiB"]
        );
    }

    #[test]
    fn shares_and_quotients() {
        assert_eq!(
            [0.0, 0.24, 0.0416, 0.0003, 1.0, 1e-9].map(percent),
            ["0 %", "24 %", "4.2 %", "0.03 %", "100 %", "<0.01 %"]
        );
        assert_eq!(
            [2.3168, 17.0, 123.4, 1204.4, f64::NAN].map(ratio),
            ["2.32", "17.0", "123", "1 204", "NaN"]
        );
        assert_eq!(
            [3.1e-7, 0.0, 9.6e-7, f64::INFINITY].map(error),
            ["3e-7", "0", "1e-6", "inf"]
        );
        assert_eq!(
            [0.75, 0.875, 0.0, 1.0, 0.9999].map(sparsity),
            ["75%", "87.5%", "0%", "100%", "99.99%"]
        );
    }

    #[test]
    fn shares_in_whole_per_cents_add_up() {
        assert_eq!(percents(&[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]), [34, 33, 33]);
        assert_eq!(percents(&[0.996, 0.002, 0.002]), [100, 0, 0]);
        assert!(percents(&[]).is_empty());
        let mut s = 1u64;
        for n in 1..200usize {
            let raw: Vec<f64> = (0..n % 9 + 1)
                .map(|_| {
                    s = s
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    (s >> 40) as f64
                })
                .collect();
            let sum: f64 = raw.iter().sum();
            let shares: Vec<f64> = raw.iter().map(|r| r / sum).collect();
            assert_eq!(percents(&shares).iter().sum::<u32>(), 100);
        }
    }
}
