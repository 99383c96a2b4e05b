"""Compile Triton's kernels for absent GPUs; print name, compute capability, shared bytes, and mma or tf32 if in
the code"""
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cleftgan_nb import ops
from cleftgan_nb.networks.stylegan3 import layer_filters, layer_table
from cleftgan_nb.ops import stage, triton_act, triton_kernels as tk

SHORT = {torch.float32: 'fp32', torch.float16: 'fp16', torch.bfloat16: 'bf16'}


def compiled(kernel, dtype, constants, one, arch, warps):
    "Compile a kernel with these constants to PTX; arguments in `one` are 1"
    names = kernel.arg_names
    constants = {**constants, **dict.fromkeys(one, 1)}
    def kind(n):
        if n in constants: return 'constexpr'
        if n in ('x', 'g', 'y', 'dy', 'h'): return '*' + SHORT[dtype]
        if n == 'b' or n[2:] in ('fy', 'fx'): return '*fp32'
        return 'fp32' if n in ('gain', 'leak', 'clamp', 'alpha') else 'i64' if n == 'n' else 'i32'
    signature = {n: kind(n) for n in names}
    attrs = {(i,): [['tt.divisibility', 16]] for i, n in enumerate(names)
             if signature[n][0] == '*' or n[2:] in ('sn', 'sy', 'sx') and n not in one}
    source = ASTSource(fn=kernel, signature=signature,
                       constexprs={(names.index(n),): getattr(v, 'value', v) for n, v in constants.items()},
                       attrs=attrs)
    return triton.compile(source, target=GPUTarget('cuda', arch, 32), options=dict(num_warps=warps, num_stages=1))


def pipe(dtype, mode, last, filters, arch):
    (fu, fd, up), half = filters, dtype != torch.float32
    u = stage.fir_stage(fu, (up, up), (1, 1), [9]*4, False, up**2, (148, 148))
    d = stage.fir_stage(fd, (1, 1), (2, 2), [0]*4, False, 1, u.out)
    a, b, c = [tk.stage(s, tk.KEEP[dtype], 'cpu')
               for s in ((u, d.transposed, u.transposed) if mode == 2 else (u, u, d))]
    sizes, _ = tk.plan(mode, a, b, c, half, last)
    one = [f'{t}_{"sc" if last else "sx"}' for t in 'xgy']
    return compiled(tk.pipe_kernel, dtype, dict(sizes, BIASED=mode > 0, EVEN=last, FAR=not last, WIDE=False), one,
                    arch, tk.WARPS[half])


if __name__ == '__main__':
    f12, f24 = ops.design_lowpass_filter(12, 8, 9.1, 64), ops.design_lowpass_filter(24, 5.3, 7.7, 128)
    rounded = layer_filters(layer_table(64, conv_kernel=1)[11], True)[1]
    t, t4, r = (f12, f12, 2), (f24, f12, 4), (f12, rounded, 2)
    runs = [(80, torch.float16, 1, True, t), (80, torch.bfloat16, 2, True, t4), (80, torch.float32, 2, False, r),
            (90, torch.float16, 2, True, r), (90, torch.float16, 0, False, r), (90, torch.float32, 1, False, t)]
    for arch, dtype, mode, last, filters in runs:
        k = pipe(dtype, mode, last, filters, arch)
        print(f'pipe-{mode}-{str(dtype)[6:]}', arch, k.metadata.shared,
              *[w for w in ('mma', 'tf32') if w in k.asm['ptx']], flush=True)
    k = compiled(triton_act.act_kernel, torch.float32,
                 dict(ACT=8, ORDER=2, BIASED=True, WIDE=False, FAR=False, BLOCK=1024), (), 80, 4)
    print('act-float32', 80, k.metadata.shared, *[w for w in ('mma', 'tf32') if w in k.asm['ptx']])
