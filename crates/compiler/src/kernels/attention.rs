//! shim
use super::*;
pub(super) struct AttentionKernel<'a>(pub &'a Attention);
impl Implementation for AttentionKernel<'_> {
    fn op(&self) -> &'static str { "attention" }
    fn about(&self) -> &'static str { "" }
    fn fit(&self, _: &Context, w: u32, h: u32) -> (u32, u32) { (w, h) }
    fn estimate(&self, _: &Context, _: u32, _: u32) -> Option<Estimate> { None }
    fn emit(&self, _: &str, _: &Context, _: u32, _: u32) -> Emitted { unreachable!() }
}
